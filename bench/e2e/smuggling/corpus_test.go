//go:build e2e

package smuggling_test

import (
	"fmt"
	"strings"
)

// attempt is what a client writes on one connection, and what it means by the words of RFC 9112. Behind raw follows
// tail, unless it is open: a last request, which is answered exactly if everything before it was understood.
type attempt struct {
	name    string
	raw     string
	want    []meant // requests that are to reach a server behind, in order
	refused int     // the status of the answer after theirs, with which the connection ends; 0: the tail is answered
	last    bool    // the connection ends after want
	open    bool    // raw is all the client sends: it ends inside a message, which reaches nobody
	http2   bool    // the connection is HTTP/2 from its start: none of its bytes is a request in HTTP/1.1
}

// meant is one request that a client made.
type meant struct {
	method, target, body string
}

const tail = "GET /tail HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

// smuggled is a request in a place where none can stand, unless an attempt says so.
const smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n"

// hidden is what is meant when a request is the body of another.
var hidden = []meant{{"POST", "/a", smuggled}}

var plain = []meant{{"POST", "/a", "hello"}}

// post is a POST to /a with these field lines, and what follows its head.
func post(fields, rest string) string {
	return "POST /a HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n" + rest
}

// withLength is a field line that says the true length of body, under a name of any spelling.
func withLength(name, body string) string { return fmt.Sprintf("%s %d\r\n", name, len(body)) }

const (
	chunkedField = "Transfer-Encoding: chunked\r\n"
	helloChunks  = "5\r\nhello\r\n0\r\n\r\n"
)

// chunks is body as one chunk and the end.
func chunks(body string) string { return fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body) }

var corpus = concat(lengths, codings, lines, sizes, trailers, requestLines, hosts, pipelines, manners)

func concat(lists ...[]attempt) (all []attempt) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

var lengths = []attempt{
	{name: "length", raw: post(withLength("Content-Length:", smuggled), smuggled), want: hidden},
	{name: "length with zeros before", raw: post("Content-Length: 0005\r\n", "hello"), want: plain},
	{name: "length among white space", raw: post("Content-Length:\t 5 \t\r\n", "hello"), want: plain},
	{name: "length in capitals", raw: post("CONTENT-LENGTH: 5\r\n", "hello"), want: plain},
	{name: "no space after the colon", raw: post("Content-Length:5\r\n", "hello"), want: plain},
	{name: "length twice, the same", raw: post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), refused: 400},
	{name: "length twice, longer first", raw: post(withLength("Content-Length:", smuggled)+"Content-Length: 0\r\n", smuggled), refused: 400},
	{name: "length twice, longer last", raw: post("Content-Length: 0\r\n"+withLength("Content-Length:", smuggled), smuggled), refused: 400},
	{name: "list of lengths, the same", raw: post("Content-Length: 5, 5\r\n", "hello"), refused: 400},
	{name: "list of lengths", raw: post("Content-Length: 0, 5\r\n", "hello"), refused: 400},
	{name: "length with a plus", raw: post("Content-Length: +5\r\n", "hello"), refused: 400},
	{name: "length with a minus", raw: post("Content-Length: -5\r\n", smuggled), refused: 400},
	{name: "length in hex", raw: post("Content-Length: 0x5\r\n", "hello"), refused: 400},
	{name: "length with an underscore", raw: post("Content-Length: 4_2\r\n", smuggled), refused: 400},
	{name: "length with a point", raw: post("Content-Length: 5.0\r\n", "hello"), refused: 400},
	{name: "length with an exponent", raw: post("Content-Length: 5e0\r\n", "hello"), refused: 400},
	{name: "length with a comment", raw: post("Content-Length: 5;\r\n", "hello"), refused: 400},
	{name: "length in quotes", raw: post("Content-Length: \"5\"\r\n", "hello"), refused: 400},
	{name: "two lengths in one value", raw: post("Content-Length: 5 0\r\n", "hello"), refused: 400},
	{name: "no length", raw: post("Content-Length:\r\n", smuggled), refused: 400},
	{name: "length beyond 64 bits", raw: post("Content-Length: 18446744073709551621\r\n", "hello"), refused: 400},
	{name: "length in Arabic digits", raw: post("Content-Length: \u0665\r\n", "hello"), refused: 400},
	{name: "length with a vertical tab", raw: post("Content-Length: \v5\r\n", "hello"), refused: 400},
	{name: "length with a NUL", raw: post("Content-Length: 5\x00\r\n", "hello"), refused: 400},
	{name: "length of a longer body", raw: post("Content-Length: 500\r\n", smuggled), open: true},
	{name: "length of a body too large", raw: post("Content-Length: 999999999999\r\n", smuggled), refused: 413},
	{name: "length by another name", raw: post("Content_Length: 0\r\n"+withLength("Content-Length:", smuggled), smuggled), want: hidden},
	{name: "length and coding", raw: post("Content-Length: 5\r\n"+chunkedField, "0\r\n\r\n"+smuggled), refused: 400},
	{name: "coding and length", raw: post(chunkedField+withLength("Content-Length:", smuggled), "0\r\n\r\n"+smuggled), refused: 400},
	{name: "no length and coding", raw: post("Content-Length: 0\r\n"+chunkedField, helloChunks), refused: 400},
	{name: "length named by Connection", raw: post("Connection: content-length\r\n"+withLength("Content-Length:", smuggled), smuggled), want: hidden},
}

var codings = []attempt{
	{name: "chunked", raw: post(chunkedField, chunks(smuggled)), want: hidden},
	{name: "chunked in capitals", raw: post("TRANSFER-ENCODING: CHUNKED\r\n", helloChunks), want: plain},
	{name: "chunked among white space", raw: post("Transfer-Encoding: \t chunked \t \r\n", helloChunks), want: plain},
	{name: "chunked named by Connection", raw: post("Connection: transfer-encoding\r\n"+chunkedField, helloChunks), want: plain},
	{name: "chunked by another name", raw: post("Transfer_Encoding: chunked\r\n"+withLength("Content-Length:", smuggled), smuggled), want: hidden},
	{name: "chunked twice", raw: post(chunkedField+chunkedField, helloChunks), refused: 400},
	{name: "chunked twice in a list", raw: post("Transfer-Encoding: chunked, chunked\r\n", helloChunks), refused: 501},
	{name: "chunked, then identity", raw: post(chunkedField+"Transfer-Encoding: identity\r\n", helloChunks), refused: 400},
	{name: "identity, then chunked", raw: post("Transfer-Encoding: identity\r\n"+chunkedField, helloChunks), refused: 501},
	{name: "identity", raw: post("Transfer-Encoding: identity\r\n"+withLength("Content-Length:", smuggled), smuggled), refused: 501},
	{name: "gzip, chunked", raw: post("Transfer-Encoding: gzip, chunked\r\n", helloChunks), refused: 501},
	{name: "chunked, gzip", raw: post("Transfer-Encoding: chunked, gzip\r\n", helloChunks), refused: 501},
	{name: "xchunked", raw: post("Transfer-Encoding: xchunked\r\n", helloChunks), refused: 501},
	{name: "chunked with a parameter", raw: post("Transfer-Encoding: chunked;q=1\r\n", helloChunks), refused: 501},
	{name: "chunked in quotes", raw: post("Transfer-Encoding: \"chunked\"\r\n", helloChunks), refused: 501},
	{name: "comma and chunked", raw: post("Transfer-Encoding: , chunked\r\n", helloChunks), refused: 501},
	{name: "coding left empty", raw: post("Transfer-Encoding:\r\n"+withLength("Content-Length:", smuggled), smuggled), refused: 501},
	{name: "chunked after a vertical tab", raw: post("Transfer-Encoding: \vchunked\r\n", helloChunks), refused: 400},
	{name: "chunked and a NUL", raw: post("Transfer-Encoding: chunked\x00\r\n", helloChunks), refused: 400},
	{name: "chunked after a no-break space", raw: post("Transfer-Encoding: \xa0chunked\r\n", helloChunks), refused: 501},
	{name: "chunked in HTTP/1.0", raw: "POST /a HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n" + chunkedField + "\r\n" + helloChunks, refused: 400},
	{name: "chunked and length in HTTP/1.0", raw: "POST /a HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\n" + chunkedField + "\r\n" + helloChunks, refused: 400},
}

var lines = []attempt{
	{name: "space before the colon", raw: post("Transfer-Encoding : chunked\r\n", helloChunks), refused: 400},
	{name: "tab before the colon", raw: post("Transfer-Encoding\t: chunked\r\n", helloChunks), refused: 400},
	{name: "space before the colon of a length", raw: post("Content-Length : 5\r\n", "hello"), refused: 400},
	{name: "folded value", raw: post("X: a\r\n b\r\n", ""), refused: 400},
	{name: "folded coding", raw: post("Transfer-Encoding:\r\n chunked\r\n", helloChunks), refused: 501},
	{name: "folded length", raw: post("Content-Length:\r\n\t5\r\n", "hello"), refused: 400},
	{name: "coding as a fold", raw: post("X: a\r\n Transfer-Encoding: chunked\r\n", helloChunks), refused: 400},
	{name: "space before the first field", raw: "POST /a HTTP/1.1\r\n Transfer-Encoding: chunked\r\nHost: a\r\n\r\n" + helloChunks, refused: 400},
	{name: "a line of one space", raw: "POST /a HTTP/1.1\r\nHost: a\r\n \r\n" + smuggled, refused: 400},
	{name: "bare LF", raw: post("X: a\nTransfer-Encoding: chunked\r\n", helloChunks), refused: 400},
	{name: "bare LF everywhere", raw: "GET /a HTTP/1.1\nHost: a\n\n" + smuggled, refused: 400},
	{name: "bare LF at the end of the head", raw: "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\nhello", refused: 400},
	{name: "bare CR in a value", raw: post("X: a\rTransfer-Encoding: chunked\r\n", helloChunks), refused: 400},
	{name: "bare CRs around a request", raw: post("X: a\r\r"+strings.ReplaceAll(smuggled, "\r\n", "\r")+"\r\n", ""), refused: 400},
	{name: "CR CR LF", raw: post("X: a\r\r\n"+withLength("Content-Length:", smuggled), smuggled), refused: 400},
	{name: "CR before a name", raw: post("\rTransfer-Encoding: chunked\r\n", helloChunks), refused: 400},
	{name: "NUL in a value", raw: post("X: a\x00b\r\n", ""), refused: 400},
	{name: "NUL in a name", raw: post("X\x00: a\r\n", ""), refused: 400},
	{name: "DEL in a value", raw: post("X: \x7f\r\n", ""), refused: 400},
	{name: "no colon", raw: post("Transfer-Encoding chunked\r\n", helloChunks), refused: 400},
	{name: "no name", raw: post(": chunked\r\n", helloChunks), refused: 400},
	{name: "parentheses in a name", raw: post("Transfer-Encoding(x): chunked\r\n", helloChunks), refused: 400},
	{name: "a byte above ASCII in a name", raw: post("Transfer-Encoding\xa0: chunked\r\n", helloChunks), refused: 400},
	{name: "bytes above ASCII in a value", raw: post("X: \xe2\x80\xa8\xff\r\nContent-Length: 5\r\n", "hello"), want: plain},
	{name: "a value that looks like a line", raw: post("X: Content-Length: 0\r\n"+withLength("Content-Length:", smuggled), smuggled), want: hidden},
	{name: "a long value", raw: post("X: "+strings.Repeat("a", 30<<10)+"\r\n"+withLength("Content-Length:", smuggled), smuggled), want: hidden},
	{name: "a value too long", raw: post("X: "+strings.Repeat("a", 70<<10)+"\r\n", smuggled), refused: 431},
	{name: "fields without end", raw: post(strings.Repeat("X: y\r\n", 300)+chunkedField, helloChunks), refused: 431},
}

var sizes = []attempt{
	{name: "several chunks", raw: post(chunkedField, "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), want: plain},
	{name: "size with zeros before", raw: post(chunkedField, "00005\r\nhello\r\n000\r\n\r\n"), want: plain},
	{name: "size in capitals", raw: post(chunkedField, "A\r\nhellohello\r\n0\r\n\r\n"), want: []meant{{"POST", "/a", "hellohello"}}},
	{name: "extension", raw: post(chunkedField, "5;a=b;c\r\nhello\r\n0;d=\"e\"\r\n\r\n"), want: plain},
	{name: "extension that is a request", raw: post(chunkedField, "5;GET /smuggled HTTP/1.1\r\nhello\r\n0\r\n\r\n"), want: plain},
	{name: "extension with a bare LF", raw: post(chunkedField, "5;a\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "extension with a bare LF, two ways to read it", raw: post(chunkedField, "2;\nxx\r\n4c\r\n0\r\n\r\n"+smuggled), refused: 400},
	{name: "extension with a bare CR", raw: post(chunkedField, "5;\ra\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "extension with a NUL", raw: post(chunkedField, "5;\x00\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "extension of the last chunk with a bare LF", raw: post(chunkedField, "5\r\nhello\r\n0;\n\r\n"+smuggled), refused: 400},
	{name: "extensions too long", raw: post(chunkedField, "5;"+strings.Repeat("a", 20<<10)+"\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "size with 0x", raw: post(chunkedField, "0x5\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "size with a plus", raw: post(chunkedField, "+5\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "size with a minus", raw: post(chunkedField, "-5\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "size with an underscore", raw: post(chunkedField, "0_5\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "space before the size", raw: post(chunkedField, " 5\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "space after the size", raw: post(chunkedField, "5 \r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "tab after the size", raw: post(chunkedField, "5\t\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "no size", raw: post(chunkedField, "\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "size that is no number", raw: post(chunkedField, "g\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "size beyond 64 bits", raw: post(chunkedField, "10000000000000005\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "size of 64 bits", raw: post(chunkedField, "ffffffffffffffff\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "size beyond the limit of a body", raw: post(chunkedField, "fffffff\r\nhello\r\n"), open: true},
	{name: "size too small", raw: post(chunkedField, "4\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "size too large", raw: post(chunkedField, "6\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "LF after the size", raw: post(chunkedField, "5\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "LF after the data", raw: post(chunkedField, "5\r\nhello\n0\r\n\r\n"), refused: 400},
	{name: "nothing after the data", raw: post(chunkedField, "5\r\nhello0\r\n\r\n"), refused: 400},
	{name: "two bytes for the CRLF after the data", raw: post(chunkedField, "5\r\nhelloXX0\r\n\r\n"+smuggled), refused: 400},
	{name: "CR CR LF after the size", raw: post(chunkedField, "5\r\r\nhello\r\n0\r\n\r\n"), refused: 400},
	{name: "last chunk without its CRLF", raw: post(chunkedField, "5\r\nhello\r\n0\r\n"), refused: 400},
	{name: "no last chunk", raw: post(chunkedField, "5\r\nhello\r\n"), open: true},
}

var trailers = []attempt{
	{name: "trailer", raw: post(chunkedField, "5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"), want: plain},
	{name: "trailers of framing", raw: post(chunkedField, "5\r\nhello\r\n0\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\nHost: b\r\n\r\n"), want: plain},
	{name: "trailer that was announced", raw: post("Trailer: Content-Length\r\n"+chunkedField, "5\r\nhello\r\n0\r\nContent-Length: 0\r\n\r\n"), want: plain},
	{name: "folded trailer", raw: post(chunkedField, "5\r\nhello\r\n0\r\nX: 1\r\n 2\r\n\r\n"), refused: 400},
	{name: "trailer with a bare LF", raw: post(chunkedField, "5\r\nhello\r\n0\r\nX: 1\nY: 2\r\n\r\n"), refused: 400},
	{name: "trailers end in a bare LF", raw: post(chunkedField, "5\r\nhello\r\n0\r\n\n"+smuggled), refused: 400},
	{name: "trailer that is a request", raw: post(chunkedField, "5\r\nhello\r\n0\r\n"+smuggled), refused: 400},
	{name: "trailers too long", raw: post(chunkedField, "5\r\nhello\r\n0\r\nX: "+strings.Repeat("a", 10<<10)+"\r\n\r\n"), refused: 400},
}

var requestLines = []attempt{
	{name: "empty line before", raw: "\r\n" + post("Content-Length: 5\r\n", "hello"), refused: 400},
	{name: "HTTP/0.9", raw: "GET /smuggled\r\n", refused: 400},
	{name: "HTTP/1.2", raw: "GET /smuggled HTTP/1.2\r\nHost: a\r\n\r\n", refused: 505},
	{name: "HTTP/2.0", raw: "GET /smuggled HTTP/2.0\r\nHost: a\r\n\r\n", refused: 505},
	{name: "HTTP/1.1 in lower case", raw: "GET /smuggled http/1.1\r\nHost: a\r\n\r\n", refused: 400},
	{name: "version with a zero", raw: "GET /smuggled HTTP/1.01\r\nHost: a\r\n\r\n", refused: 400},
	{name: "preface of HTTP/2", raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", http2: true},
	{name: "two versions", raw: "GET /smuggled HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n", refused: 400},
	{name: "two spaces", raw: "GET  /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", refused: 400},
	{name: "tabs for spaces", raw: "GET\t/smuggled\tHTTP/1.1\r\nHost: a\r\n\r\n", refused: 400},
	{name: "space after the version", raw: "GET /smuggled HTTP/1.1 \r\nHost: a\r\n\r\n", refused: 400},
	{name: "method seldom used", raw: "PROPFIND /a HTTP/1.1\r\nHost: a\r\n" + withLength("Content-Length:", smuggled) + "\r\n" + smuggled, want: []meant{{"PROPFIND", "/a", smuggled}}},
	{name: "method that is no token", raw: "G(T /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", refused: 400},
	{name: "CONNECT", raw: "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n" + smuggled, refused: 501},
	{name: "target with a bare CR", raw: "GET /a\rX HTTP/1.1\r\nHost: a\r\n\r\n", refused: 400},
	{name: "target with a NUL", raw: "GET /a\x00b HTTP/1.1\r\nHost: a\r\n\r\n", refused: 400},
	{name: "target above ASCII", raw: "GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n", refused: 400},
	{name: "target with a fragment", raw: "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", refused: 400},
	{name: "target with a line in it", raw: "GET /a?x=%0d%0aGET%20/smuggled HTTP/1.1\r\nHost: a\r\n\r\n", want: []meant{{"GET", "/a?x=%0d%0aGET%20/smuggled", ""}}},
	{name: "target with dots", raw: "GET /a/../b//c HTTP/1.1\r\nHost: a\r\n\r\n", want: []meant{{"GET", "/b/c", ""}}},
	{name: "target too long", raw: "GET /" + strings.Repeat("a", 17<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", refused: 414},
	{name: "target without a slash", raw: "GET smuggled HTTP/1.1\r\nHost: a\r\n\r\n", refused: 400},
	{name: "absolute form", raw: "GET http://b/a?c=d HTTP/1.1\r\nHost: a\r\n\r\n", want: []meant{{"GET", "/a?c=d", ""}}},
	{name: "absolute form without a path", raw: "GET http://b HTTP/1.1\r\nHost: a\r\n\r\n", want: []meant{{"GET", "/", ""}}},
	{name: "absolute form with a user", raw: "GET http://x@b/smuggled HTTP/1.1\r\nHost: a\r\n\r\n", refused: 400},
	{name: "absolute form of another scheme", raw: "GET ftp://b/smuggled HTTP/1.1\r\nHost: a\r\n\r\n", refused: 400},
}

var hosts = []attempt{
	{name: "no Host", raw: "GET /smuggled HTTP/1.1\r\nX: y\r\n\r\n", refused: 400},
	{name: "two Hosts", raw: "GET /smuggled HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", refused: 400},
	{name: "two Hosts, the same", raw: "GET /smuggled HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", refused: 400},
	{name: "two Hosts with the absolute form", raw: "GET http://a/smuggled HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", refused: 400},
	{name: "list of Hosts", raw: "GET /smuggled HTTP/1.1\r\nHost: a, b\r\n\r\n", refused: 400},
	{name: "Host with a path", raw: "GET /smuggled HTTP/1.1\r\nHost: a/b\r\n\r\n", refused: 400},
	{name: "Host with a user", raw: "GET /smuggled HTTP/1.1\r\nHost: a@b\r\n\r\n", refused: 400},
	{name: "Host left empty", raw: "GET /smuggled HTTP/1.1\r\nHost:\r\n\r\n", refused: 400},
	{name: "Host with a space before the colon", raw: "GET /smuggled HTTP/1.1\r\nHost : b\r\nHost: a\r\n\r\n", refused: 400},
	{name: "Host with a port that is none", raw: "GET /smuggled HTTP/1.1\r\nHost: a:b\r\n\r\n", refused: 400},
	{name: "Host named by Connection", raw: "GET /a HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", want: []meant{{"GET", "/a", ""}}},
	{name: "X-Forwarded-Host beside it", raw: "GET /a HTTP/1.1\r\nHost: a\r\nX-Forwarded-Host: b\r\n\r\n", want: []meant{{"GET", "/a", ""}}},
}

var pipelines = []attempt{
	{name: "requests in a row", raw: "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
		want: []meant{{"GET", "/1", ""}, {"GET", "/2", ""}, {"GET", "/3", ""}}},
	{name: "bodies in a row", raw: post(withLength("Content-Length:", smuggled), smuggled) + post(chunkedField, chunks(smuggled)) + post("Content-Length: 5\r\n", "hello"),
		want: concatMeant(hidden, hidden, plain)},
	{name: "a body that was not declared is a request", raw: post("", smuggled), want: []meant{{"POST", "/a", ""}, {"GET", "/smuggled", ""}}},
	{name: "a body longer than declared is a request", raw: post("Content-Length: 0\r\n", smuggled), want: []meant{{"POST", "/a", ""}, {"GET", "/smuggled", ""}}},
	{name: "the rest of a body is no request", raw: post("Content-Length: 5\r\n", "hello<html>"), want: plain, refused: 400},
	{name: "nothing follows what was refused", raw: post("Content-Length: x\r\n", "") + smuggled, refused: 400},
	{name: "answers before what was refused", raw: post("Content-Length: 5\r\n", "hello") + post(chunkedField, "x\r\n") + smuggled, want: plain, refused: 400},
	{name: "GET with a body", raw: "GET /a HTTP/1.1\r\nHost: a\r\n" + withLength("Content-Length:", smuggled) + "\r\n" + smuggled, want: []meant{{"GET", "/a", smuggled}}},
	{name: "GET with chunks", raw: "GET /a HTTP/1.1\r\nHost: a\r\n" + chunkedField + "\r\n" + chunks(smuggled), want: []meant{{"GET", "/a", smuggled}}},
	{name: "HEAD", raw: "HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n", want: []meant{{"HEAD", "/a", ""}}},
	{name: "HEAD with a body", raw: "HEAD /a HTTP/1.1\r\nHost: a\r\n" + withLength("Content-Length:", smuggled) + "\r\n" + smuggled, want: []meant{{"HEAD", "/a", smuggled}}},
	{name: "DELETE with a body", raw: "DELETE /a HTTP/1.1\r\nHost: a\r\n" + withLength("Content-Length:", smuggled) + "\r\n" + smuggled, want: []meant{{"DELETE", "/a", smuggled}}},
	{name: "OPTIONS with a body", raw: "OPTIONS /a HTTP/1.1\r\nHost: a\r\n" + chunkedField + "\r\n" + chunks(smuggled), want: []meant{{"OPTIONS", "/a", smuggled}}},
	{name: "nothing follows a close", raw: post("Connection: close\r\nContent-Length: 5\r\n", "hello") + smuggled, want: plain, last: true},
	{name: "nothing follows a close in a list", raw: post("Connection: x, Close\r\nContent-Length: 5\r\n", "hello") + smuggled, want: plain, last: true},
}

func concatMeant(lists ...[]meant) (all []meant) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// longBody does not arrive in one read.
var longBody = strings.Repeat(smuggled, 5000)

var manners = []attempt{
	{name: "HTTP/1.0", raw: "GET /a HTTP/1.0\r\n\r\n" + smuggled, want: []meant{{"GET", "/a", ""}}, last: true},
	{name: "HTTP/1.0 with a body", raw: "POST /a HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + smuggled, want: plain, last: true},
	{name: "HTTP/1.0 that stays", raw: "POST /a HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n" + withLength("Content-Length:", smuggled) + "\r\n" + smuggled, want: hidden},
	{name: "Expect with its body at once", raw: post("Expect: 100-continue\r\n"+withLength("Content-Length:", smuggled), smuggled), want: hidden},
	{name: "Expect with chunks", raw: post("Expect: 100-Continue\r\n"+chunkedField, chunks(smuggled)), want: hidden},
	{name: "Expect without a body", raw: "GET /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", want: []meant{{"GET", "/a", ""}}},
	{name: "Expect of something else", raw: post("Expect: x\r\n"+withLength("Content-Length:", smuggled), smuggled), refused: 417},
	{name: "Expect twice", raw: post("Expect: 100-continue\r\nExpect: y\r\nContent-Length: 5\r\n", "hello"), refused: 417},
	{name: "Expect in HTTP/1.0", raw: "POST /a HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", want: plain, last: true},
	{name: "Upgrade that is declined", raw: "GET /a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", want: []meant{{"GET", "/a", ""}}},
	{name: "Upgrade to h2c", raw: "GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" +
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", want: []meant{{"GET", "/a", ""}}, refused: 505},
	{name: "Upgrade by POST", raw: post("Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 0\r\n", ""), want: []meant{{"POST", "/a", ""}}},
	{name: "Upgrade with chunks", raw: post("Connection: upgrade\r\nUpgrade: x\r\n"+chunkedField, chunks(smuggled)), want: hidden},
	{name: "Upgrade with a long body", raw: post("Connection: upgrade\r\nUpgrade: websocket\r\n"+withLength("Content-Length:", longBody), longBody),
		want: []meant{{"POST", "/a", longBody}}},
	{name: "Upgrade with a body", raw: post("Connection: upgrade\r\nUpgrade: x\r\n"+withLength("Content-Length:", smuggled), smuggled), want: hidden},
	{name: "TE", raw: post("TE: trailers, chunked\r\nConnection: te\r\n"+withLength("Content-Length:", smuggled), smuggled), want: hidden},
	{name: "Content-Encoding is not framing", raw: post("Content-Encoding: chunked\r\n"+withLength("Content-Length:", smuggled), smuggled), want: hidden},
	{name: "method overridden", raw: post("X-HTTP-Method-Override: GET\r\n"+withLength("Content-Length:", smuggled), smuggled), want: hidden},
	{name: "an answer as a body", raw: post("Content-Length: 38\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), want: []meant{{"POST", "/a", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"}}},
}
