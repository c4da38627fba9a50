package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// memoryStream is a request and its answer in memory: the Exchange with no
// HTTP around it.
type memoryStream struct {
	ctx  context.Context
	head message.Request
	body io.Reader

	mu       sync.Mutex
	answer   message.Response
	fields   []message.Field // the answer's, copied
	written  bytes.Buffer
	flushed  int // bytes of written that the client can see
	finished bool
	aborted  bool
	started  bool
	lost     func() // ends ctx
	bound    interface{ Interrupt() }
	onWrite  func() // called after each Flush
	writeErr error
	tunnel   *sock.Conn // what Tunnel gives
	conn     net.Conn   // what Conn gives
}

var errClientLeft = errors.New("the client left")

// post is a POST of a JSON body to a path.
func post(path, body string, fields ...string) *memoryStream {
	m := &memoryStream{body: strings.NewReader(body)}
	m.head = message.Request{
		Method: []byte("POST"), Target: []byte(path), Authority: []byte("fairway.test"),
		ContentLength: int64(len(body)),
		Fields:        []message.Field{{Name: []byte("Content-Type"), Value: []byte("application/json")}},
	}
	for i := 0; i+1 < len(fields); i += 2 {
		m.head.Fields = append(m.head.Fields, message.Field{Name: []byte(fields[i]), Value: []byte(fields[i+1])})
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	m.ctx, m.lost = ctx, func() { cancel(errClientLeft) }
	return m
}

// leave is what the client's hang-up does.
func (m *memoryStream) leave() {
	m.lost()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bound != nil {
		m.bound.Interrupt()
		m.bound = nil
	}
}

func (m *memoryStream) Context() context.Context   { return m.ctx }
func (m *memoryStream) Head() *message.Request     { return &m.head }
func (m *memoryStream) Read(p []byte) (int, error) { return m.body.Read(p) }
func (m *memoryStream) Conn() net.Conn             { return m.conn }
func (m *memoryStream) Remote() string             { return "192.0.2.1:4711" }
func (m *memoryStream) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4711}
}

func (m *memoryStream) Bind(i interface{ Interrupt() }) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return false
	}
	m.bound = i
	return true
}

func (m *memoryStream) Unbind() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bound = nil
}

func (m *memoryStream) WriteHead(r *message.Response) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer, m.started = *r, true
	for _, f := range r.Fields {
		m.fields = append(m.fields, message.Field{Name: bytes.Clone(f.Name), Value: bytes.Clone(f.Value)})
	}
	return m.writeErr
}

func (m *memoryStream) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writeErr != nil {
		return 0, m.writeErr
	}
	return m.written.Write(p)
}

func (m *memoryStream) Flush() error {
	m.mu.Lock()
	m.flushed = m.written.Len()
	call := m.onWrite
	m.mu.Unlock()
	if call != nil {
		call()
	}
	return nil
}

func (m *memoryStream) Finish([]message.Field) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushed, m.finished = m.written.Len(), true
	return m.writeErr
}

func (m *memoryStream) Abort() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.aborted = true
}

func (m *memoryStream) Tunnel() (*sock.Conn, error) {
	if m.answer.Status != 101 || m.tunnel == nil {
		return nil, errors.New("no tunnel")
	}
	return m.tunnel, nil
}

func (m *memoryStream) Started() bool { return m.started }

// seen is the answer's body as the client has it.
func (m *memoryStream) seen() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.written.Bytes()[:m.flushed])
}

// field is a field of the answer.
func (m *memoryStream) field(name string) string { return string(message.Get(m.fields, name)) }
