package hbone

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// A Peer is what is known of the other end of a tunnel. It does not change.
type Peer struct {
	// ID is who it is, by its certificate (or, in a sandwich, by ztunnel's word).
	// Zero: a sandwich's ztunnel does not know.
	ID spiffeid.ID
	// Destination is where the tunnel is to lead, an address of a Service or of a
	// pod. Zero when Authority is a host's name.
	Destination netip.AddrPort
	// Authority is the same as it was asked for, "host:port".
	Authority string
	// Forwarded is where the connection in the tunnel comes from, and ForwardedHost
	// the name of the Service it is meant for, as the peer says (RFC 7239; ztunnel
	// leaves the host out for a pod's address). Either may be zero.
	Forwarded     netip.AddrPort
	ForwardedHost string
	// Baggage and Traceparent are the fields of these names, with what the peer
	// tells of the workload it speaks for.
	Baggage, Traceparent string
	// Remote is the other end of the connection the tunnel is in, which is the workload's own address. Nil in a
	// sandwich, where it would be the ztunnel of this machine: there Forwarded is the workload's.
	Remote net.Addr
}

// PeerOf finds the Peer of a tunnel, also inside of connections that tell what they
// wrap with NetConn.
func PeerOf(c net.Conn) (*Peer, bool) {
	for c != nil {
		if t, ok := c.(interface{ Peer() *Peer }); ok {
			return t.Peer(), true
		}
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = w.NetConn()
	}
	return nil, false
}

// idOf is whom a certificate of ours is for: the one URI it has (X.509-SVID, section
// 2). Of others' mtls judges.
func idOf(leaf *x509.Certificate) (spiffeid.ID, error) {
	if len(leaf.URIs) != 1 {
		return spiffeid.ID{}, fmt.Errorf("the certificate has %d URIs instead of one SPIFFE ID", len(leaf.URIs))
	}
	return spiffeid.FromURI(leaf.URIs[0])
}

// parseAuthority reads "ip:port" or "name:port" (RFC 9110, section 9.3.6: a port is
// required). Of a name the address is zero.
func parseAuthority(s string) (netip.AddrPort, error) {
	i := strings.LastIndexByte(s, ':')
	if n, err := strconv.ParseUint(s[i+1:], 10, 16); i < 0 || err != nil || n == 0 || s[i+1] == '0' {
		return netip.AddrPort{}, fmt.Errorf("%q has no port", s)
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		if ap.Addr().Zone() != "" {
			return netip.AddrPort{}, fmt.Errorf("%q is no destination", s)
		}
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
	}
	if !hostName(s[:i]) {
		return netip.AddrPort{}, fmt.Errorf("%q names no host", s)
	}
	return netip.AddrPort{}, nil
}

// hostName tells whether s could be a name in the DNS: its last label is no number,
// so that nothing takes it for an address.
func hostName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	var label string
	for label = range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 {
			return false
		}
		for _, r := range []byte(label) {
			if r != '-' && r != '_' && (r < '0' || r > '9') && (r|0x20 < 'a' || r|0x20 > 'z') {
				return false
			}
		}
	}
	return strings.Trim(label, "0123456789") != ""
}

// parseForwarded reads the first element of a Forwarded field (RFC 7239): its "for",
// when that is an address with a port, and its "host". What it does not understand
// it leaves out.
func parseForwarded(s string) (from netip.AddrPort, host string) {
	for s != "" {
		s = strings.TrimLeft(s, " \t;")
		name, rest, ok := strings.Cut(s, "=")
		if !ok || strings.ContainsAny(name, ",;\" \t") {
			return from, host
		}
		var value string
		if strings.HasPrefix(rest, `"`) {
			value, s, ok = unquote(rest)
			if !ok {
				return from, host
			}
		} else {
			n := strings.IndexAny(rest, ",; \t\"")
			if n < 0 {
				n = len(rest)
			}
			value, s = rest[:n], rest[n:]
		}
		switch {
		case strings.EqualFold(name, "for"):
			if ap, err := netip.ParseAddrPort(value); err == nil && ap.Addr().Zone() == "" {
				from = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
			}
		case strings.EqualFold(name, "host"):
			name, _, _ := strings.Cut(value, ":")
			if hostName(name) {
				host = value
			}
		}
		s = strings.TrimLeft(s, " \t")
		if !strings.HasPrefix(s, ";") {
			return from, host // the end, or another proxy's element
		}
	}
	return from, host
}

// unquote reads a quoted string (RFC 9110, section 5.6.4) and gives what follows it.
func unquote(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

// fields is what a header block says, as far as a tunnel's ends have use for it.
// What is wrong with it is in malformed.
type fields struct {
	method, authority, scheme, path, protocol, status string
	forwarded, baggage, traceparent                   string

	regular   bool // a field that is no pseudo-header has come
	size      int  // as RFC 9113, section 6.5.2, counts
	malformed string
}

func (f *fields) reset() { *f = fields{} }

// add takes the next field of the block.
func (f *fields) add(h hpack.HeaderField) {
	if f.size += int(h.Size()); f.size > maxHeaderList {
		return // it will be refused, and must not be held
	}
	if !httpguts.ValidHeaderFieldValue(h.Value) {
		f.malformed = "a field's value has a control character"
		return
	}
	if h.IsPseudo() {
		f.addPseudo(h)
		return
	}
	f.regular = true
	if !lowerName(h.Name) {
		f.malformed = "a field's name is none"
		return
	}
	switch h.Name {
	case "forwarded":
		f.forwarded = join(f.forwarded, h.Value)
	case "baggage":
		f.baggage = join(f.baggage, h.Value)
	case "traceparent":
		f.traceparent = h.Value
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		f.malformed = h.Name + " has no place in HTTP/2" // RFC 9113, section 8.2.2
	}
}

func (f *fields) addPseudo(h hpack.HeaderField) {
	var to *string
	switch h.Name {
	case ":method":
		to = &f.method
	case ":authority":
		to = &f.authority
	case ":scheme":
		to = &f.scheme
	case ":path":
		to = &f.path
	case ":protocol":
		to = &f.protocol
	case ":status":
		to = &f.status
	}
	switch {
	case to == nil:
		f.malformed = "an unknown pseudo-header"
	case f.regular:
		f.malformed = h.Name + " comes after other fields"
	case *to != "":
		f.malformed = h.Name + " comes twice"
	case h.Value == "":
		f.malformed = h.Name + " is empty"
	default:
		*to = h.Value
	}
}

// join joins the values of a field that came more than once (RFC 9110, section
// 5.3).
func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + ", " + b
}

// lowerName tells whether s is a field's name as HTTP/2 has it.
func lowerName(s string) bool {
	for i := range len(s) {
		if s[i] >= 'A' && s[i] <= 'Z' {
			return false
		}
	}
	return httpguts.ValidHeaderFieldName(s)
}
