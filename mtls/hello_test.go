package mtls

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// sized joins parts and writes the length before them, in n bytes (RFC 8446, section 3.4).
func sized(n int, parts ...[]byte) []byte {
	b := bytes.Join(parts, nil)
	length := binary.BigEndian.AppendUint32(nil, uint32(len(b)))
	return append(length[4-n:], b...)
}

func extension(kind uint16, data []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, kind), sized(2, data)...)
}

// clientHello is a TLS 1.3 ClientHello like ztunnel's (no SNI, ALPN h2, no
// session), with these groups in this order and a key share for each of shares.
// crypto/tls cannot write one: it sorts groups its own way.
func clientHello(t *testing.T, groups, shares []tls.CurveID) []byte {
	t.Helper()
	var names, keys []byte
	for _, g := range groups {
		names = binary.BigEndian.AppendUint16(names, uint16(g))
	}
	for _, g := range shares {
		x, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key := x.PublicKey().Bytes()
		if g == tls.X25519MLKEM768 {
			k, err := mlkem.GenerateKey768()
			if err != nil {
				t.Fatal(err)
			}
			key = append(k.EncapsulationKey().Bytes(), key...)
		}
		keys = append(binary.BigEndian.AppendUint16(keys, uint16(g)), sized(2, key)...)
	}
	random := make([]byte, 32)
	rand.Read(random)
	body := bytes.Join([][]byte{
		{3, 3}, random, sized(1), // legacy version, random, no session
		sized(2, []byte{0x13, 0x02, 0x13, 0x01}), // AES-256-GCM, AES-128-GCM
		sized(1, []byte{0}),                      // no compression
		sized(2,
			extension(43, sized(1, []byte{3, 4})),             // TLS 1.3
			extension(10, sized(2, names)),                    // groups
			extension(51, sized(2, keys)),                     // key shares
			extension(13, sized(2, []byte{4, 3, 8, 4, 8, 7})), // signatures
			extension(16, sized(2, sized(1, []byte("h2")))),   // ALPN
		),
	}, nil)
	handshake := append([]byte{1}, sized(3, body)...)
	return append([]byte{22, 3, 1}, sized(2, handshake)...)
}

// helloRetryRequest is the random value of a ServerHello that asks for another
// ClientHello (RFC 8446, section 4.1.3).
var helloRetryRequest = sha256.Sum256([]byte("HelloRetryRequest"))

// retries says whether a server answers a ClientHello with a HelloRetryRequest.
func retries(t *testing.T, config *tls.Config, hello []byte) bool {
	t.Helper()
	near, far := net.Pipe()
	far.SetDeadline(time.Now().Add(time.Minute))
	var wg sync.WaitGroup
	wg.Go(func() { tls.Server(near, config).Handshake() })
	defer wg.Wait()
	defer near.Close()
	defer far.Close()
	if _, err := far.Write(hello); err != nil {
		t.Fatal(err)
	}
	// Record header, handshake header, version, random.
	answer := make([]byte, 5+4+2+32)
	if _, err := io.ReadFull(far, answer); err != nil {
		t.Fatal(err)
	}
	if answer[0] != 22 || answer[5] != 2 {
		t.Fatalf("answered with % x, not with a ServerHello", answer[:11])
	}
	return bytes.Equal(answer[11:], helloRetryRequest[:])
}

// A HelloRetryRequest costs a round trip more on every new connection.
func TestNobodyGetsAHelloRetryRequest(t *testing.T) {
	s := open(t, Throwaway{CA: newCA(t, domain), ID: waypoint})
	for name, hello := range map[string]struct{ groups, shares []tls.CurveID }{
		"ztunnel":                   {[]tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.X25519MLKEM768}, []tls.CurveID{tls.X25519}},
		"ztunnel, post-quantum":     {[]tls.CurveID{tls.X25519MLKEM768}, []tls.CurveID{tls.X25519MLKEM768}},
		"X25519 alone":              {[]tls.CurveID{tls.X25519}, []tls.CurveID{tls.X25519}},
		"groups that nobody knows":  {[]tls.CurveID{0x0a0a, 0x11ec + 0x1000, tls.X25519, tls.X25519MLKEM768}, []tls.CurveID{tls.X25519}},
		"post-quantum before plain": {[]tls.CurveID{tls.X25519MLKEM768, tls.X25519}, []tls.CurveID{tls.X25519MLKEM768, tls.X25519}},
	} {
		if retries(t, s.ServerConfig(), clientHello(t, hello.groups, hello.shares)) {
			t.Errorf("%s: a HelloRetryRequest", name)
		}
	}
	// The choice is needed: without it ztunnel would get one.
	if !retries(t, s.hybrid, clientHello(t, []tls.CurveID{tls.X25519, tls.X25519MLKEM768}, []tls.CurveID{tls.X25519})) {
		t.Error("crypto/tls asks for no retry by itself any more: the choice of configurations can go")
	}
}

// Handshakes in full, with each end's own count of retries.
func TestKeyExchanges(t *testing.T) {
	ca := newCA(t, domain)
	server, client := open(t, Throwaway{CA: ca, ID: waypoint}), open(t, Throwaway{CA: ca, ID: vllm})
	for _, test := range []struct {
		groups []tls.CurveID // the client's; nil: as ClientConfig has them
		want   tls.CurveID
	}{
		{[]tls.CurveID{tls.X25519}, tls.X25519},
		{[]tls.CurveID{tls.X25519MLKEM768}, tls.X25519MLKEM768},
		{[]tls.CurveID{tls.CurveP256}, tls.CurveP256},
		{nil, tls.X25519MLKEM768},
	} {
		config := client.ClientConfig(waypoint)
		config.CurvePreferences = slices.Clone(test.groups)
		p := connect(t, server.ServerConfig(), config)
		p.ok(t)
		for _, state := range []tls.ConnectionState{p.server.ConnectionState(), p.client.ConnectionState()} {
			if state.CurveID != test.want || state.HelloRetryRequest {
				t.Errorf("%v: %s, HelloRetryRequest %t; want %s, false", test.groups, state.CurveID, state.HelloRetryRequest, test.want)
			}
		}
	}
}
