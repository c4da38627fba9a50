package h1

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/message"
)

func parseAll(in string) (r message.Request, p *parser, done bool, err *ProtocolError) {
	p = new(parser)
	p.restart()
	done, err = p.request([]byte(in), &r)
	return r, p, done, err
}

// show is a request's head in one line.
func show(r *message.Request) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s | %s | %d |", r.Method, r.Target, r.Authority, r.ContentLength)
	for _, f := range r.Fields {
		fmt.Fprintf(&b, " %s=%s;", f.Name, f.Value)
	}
	return b.String()
}

func TestRequestHead(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / | a | 0 |"},
		{"get /x?y=%zz HTTP/1.1\r\nhOST:\t a.b:80 \t\r\n\r\n", "get /x?y=%zz | a.b:80 | 0 |"},
		{"GET / HTTP/1.0\r\n\r\n", "GET / |  | 0 |"},
		{"POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX-A: b\r\n\r\n", "POST /v1 | a | 12 | X-A=b;"},
		{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", "POST / | a | -1 |"},
		{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 000\r\n\r\n", "POST / | a | 0 |"},
		{"GET http://b:1/p?q HTTP/1.1\r\nHost: a\r\n\r\n", "GET /p?q | b:1 | 0 |"},
		{"GET HTTPS://b HTTP/1.1\r\nHost: a\r\n\r\n", "GET / | b | 0 |"},
		{"OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * | b | 0 |"},
		{"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * | a | 0 |"},
		{"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", "GET / | [::1]:8080 | 0 |"},
		{"GET //a//b HTTP/1.1\r\nHost: a\r\n\r\n", "GET //a//b | a | 0 |"},
		{"GET / HTTP/1.1\r\nHost: a\r\nEmpty:\r\nTab: a\tb\r\nUtf: \xc3\xa4\r\n\r\n", "GET / | a | 0 | Empty=; Tab=a\tb; Utf=\xc3\xa4;"},
		// Hop by hop.
		{"GET / HTTP/1.1\r\nHost: a\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers\r\nTrailer: x\r\nUpgrade: h2c\r\nA: b\r\n\r\n", "GET / | a | 0 | A=b;"},
		{"GET / HTTP/1.1\r\nHost: a\r\nX-Hop: 1\r\nA: b\r\nConnection: close,, x-HOP , te\r\nx-hop: 2\r\n\r\n", "GET / | a | 0 | A=b;"},
		// Framing cannot be taken out by naming it.
		{"POST / HTTP/1.1\r\nConnection: content-length, host, transfer-encoding\r\nHost: a\r\nContent-Length: 3\r\n\r\n", "POST / | a | 3 |"},
		{"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n", "POST / | a | 3 |"},
		{"GET / HTTP/1.1\r\nHost: a\r\nContent-Lengt: 1\r\nXontent-Length: 2\r\nTransfer-Encodinf: chunked\r\n\r\n", "GET / | a | 0 | Content-Lengt=1; Xontent-Length=2; Transfer-Encodinf=chunked;"},
	} {
		r, p, done, err := parseAll(tt.in + "next")
		if err != nil || !done || p.line != len(tt.in) {
			t.Errorf("%q: %v, done %v at %d", tt.in, err, done, p.line)
		} else if got := show(&r); got != tt.want {
			t.Errorf("%q:\n got %s\nwant %s", tt.in, got, tt.want)
		}
	}
}

func TestPersistence(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want bool
	}{
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", true},
		{"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n", false},
		{"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nConnection: x, close\r\n\r\n", false},
		{"GET / HTTP/1.0\r\n\r\n", false},
		{"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true},
		{"GET / HTTP/1.0\r\nConnection: Keep-Alive, close\r\n\r\n", false},
	} {
		_, p, _, _ := parseAll(tt.in)
		if got := p.head.persistent(p.minor); got != tt.want {
			t.Errorf("%q: %v", tt.in, got)
		}
	}
}

// What could be read in two ways, or is malformed, is refused with the reason.
func TestRefusedRequests(t *testing.T) {
	const h = "Host: a\r\n"
	post := func(fields string) string { return "POST / HTTP/1.1\r\n" + h + fields + "\r\n" }
	get := func(line string) string { return line + "\r\n" + h + "\r\n" }
	for _, tt := range []struct {
		in   string
		want *ProtocolError
	}{
		// Two framings.
		{post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), errLengthAndCoding},
		{post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), errLengthAndCoding},
		{post("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"), errLengthAndCoding},
		{post("Content-Length: 3\r\nContent-Length: 4\r\n"), errLengthTwice},
		{post("Content-Length: 3\r\nContent-Length: 3\r\n"), errLengthTwice},
		{post("Content-Length: 0\r\ncontent-length: 0\r\n"), errLengthTwice},
		{post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), errCodingTwice},
		{post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"), errCodingTwice},
		// Malformed lengths.
		{post("Content-Length: 3, 3\r\n"), errLength},
		{post("Content-Length: 3,3\r\n"), errLength},
		{post("Content-Length: +3\r\n"), errLength},
		{post("Content-Length: -1\r\n"), errLength},
		{post("Content-Length: 0x3\r\n"), errLength},
		{post("Content-Length: 3 4\r\n"), errLength},
		{post("Content-Length: 3;\r\n"), errLength},
		{post("Content-Length: 1_0\r\n"), errLength},
		{post("Content-Length: 3.0\r\n"), errLength},
		{post("Content-Length: \"3\"\r\n"), errLength},
		{post("Content-Length: \xd9\xa3\r\n"), errLength},
		{post("Content-Length:\r\n"), errLength},
		{post("Content-Length: 18446744073709551617\r\n"), errLength},
		{post("Content-Length: 9223372036854775808\r\n"), errLength},
		{post("Content-Length: 3\v\r\n"), errValue},
		// Codings.
		{post("Transfer-Encoding: identity\r\n"), errCoding},
		{post("Transfer-Encoding: gzip, chunked\r\n"), errCoding},
		{post("Transfer-Encoding: chunked, gzip\r\n"), errCoding},
		{post("Transfer-Encoding: chunked, chunked\r\n"), errCoding},
		{post("Transfer-Encoding: xchunked\r\n"), errCoding},
		{post("Transfer-Encoding: chunked;q=1\r\n"), errCoding},
		{post("Transfer-Encoding: \"chunked\"\r\n"), errCoding},
		{post("Transfer-Encoding: ,chunked\r\n"), errCoding},
		{post("Transfer-Encoding:\r\n"), errCoding},
		{post("Transfer-Encoding: chun\u212aed\r\n"), errCoding}, // folds to k only in Unicode
		{post("Transfer-Encoding: \x00chunked\r\n"), errValue},
		{post("Transfer-Encoding: chunked\x0b\r\n"), errValue},
		{"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", errCodingOld},
		// Names that some take for framing.
		{post("Transfer-Encoding : chunked\r\n"), errName},
		{post("Transfer-Encoding\t: chunked\r\n"), errName},
		{post("Content-Length\x00: 3\r\n"), errName},
		{post("Content-Length\xa0: 3\r\n"), errName},
		{post(" Transfer-Encoding: chunked\r\n"), errFold},
		{post("\tTransfer-Encoding: chunked\r\n"), errFold},
		{post("X: y\r\n Transfer-Encoding: chunked\r\n"), errFold},
		{post("Transfer-Encoding:\r\n chunked\r\n"), errCoding},
		{post(": chunked\r\n"), errName},
		{post("Transfer-Encoding\r\n"), errName},
		{post("\"Content-Length\": 3\r\n"), errName},
		{post("(X): 3\r\n"), errName},
		// Line endings and control characters.
		{"POST / HTTP/1.1\n" + h + "\r\n", errBareLF},
		{"POST / HTTP/1.1\r\nHost: a\n\r\n", errBareLF},
		{"POST / HTTP/1.1\r\nHost: a\r\n\n", errBareLF},
		{"\nPOST / HTTP/1.1\r\n" + h + "\r\n", errBareLF},
		{"\r\nPOST / HTTP/1.1\r\n" + h + "\r\n", errRequestLine},
		{post("X: a\rContent-Length: 3\r\n"), errValue},
		{post("X: a\r\r\n"), errValue},
		{post("X\r: a\r\n"), errName},
		{post("\r\r\n"), errName},
		{post("X: a\x00b\r\n"), errValue},
		{post("X: a\x7f\r\n"), errValue},
		{post("X: 12345678\x1f2345678\r\n"), errValue},
		{post("X: a\nContent-Length: 3\r\n"), errBareLF},
		// Host.
		{"GET / HTTP/1.1\r\n\r\n", errHostMissing},
		{"GET http://a/ HTTP/1.1\r\n\r\n", errHostMissing},
		{"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", errHostTwice},
		{"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", errHostTwice},
		{"GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n", errHostTwice},
		{"GET / HTTP/1.1\r\nHost:\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: a#b\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: a%2fb\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: :80\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: [1.2.3.4]\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n\r\n", errHost},
		{"GET / HTTP/1.1\r\nHost: \xc3\xa4\r\n\r\n", errHost},
		{get("GET http:///x HTTP/1.1"), errHost},
		{get("GET http://u:p@b/ HTTP/1.1"), errHost},
		{get("GET http://b?x HTTP/1.1"), errHost},
		// Request line.
		{get("GET  / HTTP/1.1"), errTarget},
		{get("GET / x HTTP/1.1"), errTarget},
		{get("GET /\tx HTTP/1.1"), errTarget},
		{get("GET\t/ HTTP/1.1"), errRequestLine},
		{get("GET / HTTP/1.1 "), errRequestLine},
		{get("GET /"), errRequestLine},
		{get("GET"), errRequestLine},
		{get(" GET / HTTP/1.1"), errRequestLine},
		{get("G(T / HTTP/1.1"), errMethod},
		{get("G\x00T / HTTP/1.1"), errMethod},
		{get("GET x HTTP/1.1"), errTarget},
		{get("GET * HTTP/1.1"), errTarget},
		{get("GET ftp://b/ HTTP/1.1"), errTarget},
		{get("GET /x#y HTTP/1.1"), errTarget},
		{get("GET /\xc3\xa4 HTTP/1.1"), errTarget},
		{get("GET /\x00 HTTP/1.1"), errTarget},
		{get("GET /\x7f HTTP/1.1"), errTarget},
		{get("GET /%zz HTTP/1.1"), errTarget},
		{get("GET /%2 HTTP/1.1"), errTarget},
		{get("GET / HTTP/1.1\rX: y"), errRequestLine},
		{get("GET /" + strings.Repeat("x", maxTarget) + " HTTP/1.1"), errTargetLong},
		{get("CONNECT a:443 HTTP/1.1"), errConnect},
		// Versions.
		{get("GET / HTTP/1.2"), errVersion},
		{get("GET / HTTP/2.0"), errVersion},
		{get("GET / HTTP/0.9"), errVersion},
		{get("GET / http/1.1"), errRequestLine},
		{get("GET / HTTP/1.10"), errRequestLine},
		{get("GET / HTTP/11"), errRequestLine},
		{get("GET / HTTP/1,1"), errRequestLine},
		{get("GET / XTTP/1.1"), errRequestLine},
		{preface, errPreface},
		// The rest.
		{post("Expect: 200-ok\r\n"), errExpect},
		{post("Connection: a b\r\n"), errConnection},
		{post("Connection: " + strings.Repeat("x,", maxNominated+1) + "\r\n"), errConnection},
		{post(strings.Repeat("X: y\r\n", maxFields)), errFieldCount},
		{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", errMethod}, // a TLS hello
		{strings.Repeat("A", maxTarget+100), errTargetLong},
	} {
		if _, _, done, err := parseAll(tt.in); done || err != tt.want {
			t.Errorf("%.120q: %v, done %v; want %v", tt.in, err, done, tt.want)
		}
	}
}

const sdkHead = "POST /v1/chat/completions HTTP/1.1\r\nHost: inference.example.com:8080\r\nAccept-Encoding: gzip, deflate\r\n" +
	"Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 1.99.9\r\n" +
	"X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 1.99.9\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\n" +
	"X-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.12.3\r\nAuthorization: Bearer sk-0123456789abcdef0123456789abcdef\r\n" +
	"X-Stainless-Async: false\r\nx-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\nContent-Length: 1024\r\n\r\n"

// A head that is cut gives a request only when its last byte is there, and the
// same one wherever it was cut.
func TestCutRequestHead(t *testing.T) {
	whole, _, _, _ := parseAll(sdkHead)
	for cut := range len(sdkHead) {
		var p parser
		var r message.Request
		p.restart()
		done, err := p.request([]byte(sdkHead)[:cut], &r)
		if done || err != nil {
			t.Fatalf("cut at %d: done %v, %v", cut, done, err)
		}
		done, err = p.request([]byte(sdkHead), &r)
		if !done || err != nil || show(&r) != show(&whole) {
			t.Fatalf("the rest after %d: done %v, %v, %s", cut, done, err, show(&r))
		}
	}
	var p parser
	var r message.Request
	p.restart()
	for i := range len(sdkHead) {
		if done, err := p.request([]byte(sdkHead)[:i+1], &r); done != (i+1 == len(sdkHead)) || err != nil {
			t.Fatalf("byte by byte at %d: done %v, %v", i, done, err)
		}
	}
	if !reflect.DeepEqual(r, whole) {
		t.Errorf("byte by byte: %s", show(&r))
	}
}

func TestResponseHead(t *testing.T) {
	parse := func(in string) (message.Response, bool, *ProtocolError) {
		var p parser
		var r message.Response
		p.restart()
		done, err := p.response([]byte(in), &r)
		return r, done, err
	}
	for _, in := range []string{
		"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: 3\r\n\r\n",
		"HTTP/1.1 200 \r\n\r\n",
		"HTTP/1.1 200\r\n\r\n",
		"HTTP/1.0 200 Very \xfcOK\r\n\r\n",
	} {
		if r, done, err := parse(in); !done || err != nil || r.Status != 200 {
			t.Errorf("%q: done %v, %v, status %d", in, done, err, r.Status)
		}
	}
	for _, tt := range []struct {
		in   string
		want *ProtocolError
	}{
		{"HTTP/1.1 20 OK\r\n\r\n", errStatusLine},
		{"HTTP/1.1 2000\r\n\r\n", errStatusLine},
		{"HTTP/1.1  200\r\n\r\n", errStatusLine},
		{"HTTP/1.1 099 x\r\n\r\n", errStatusLine},
		{"HTTP/1.1 +20 x\r\n\r\n", errStatusLine},
		{"HTTP/2.0 200 OK\r\n\r\n", errStatusLine},
		{"HTTP/1.1 200 a\x00\r\n\r\n", errStatusLine},
		{"ICY 200 OK\r\n\r\n", errStatusLine},
		{"HTTP/1.1 200 OK\n\n", errBareLF},
		{"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", errLengthAndCoding},
		{"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\n", errLengthTwice},
		{"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", errCoding},
		{"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", errCodingOld},
		{"HTTP/1.1 200 OK\r\na b: 3\r\n\r\n", errName},
		{"HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", errFold},
	} {
		if _, done, err := parse(tt.in); done || err != tt.want {
			t.Errorf("%q: done %v, %v; want %v", tt.in, done, err, tt.want)
		}
	}
}
