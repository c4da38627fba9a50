package extproc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // replicas that say that they do not serve are not asked
	"google.golang.org/grpc/status"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// Why a picker gave no ruling.
var (
	// ErrTimeout: it took longer than it may.
	ErrTimeout = errors.New("no answer in time")
	// ErrUnavailable: it could not be reached, says that it does not serve, or broke
	// off.
	ErrUnavailable = errors.New("not available")
	// ErrProtocol: it said what the protocol does not know, or not there.
	ErrProtocol = errors.New("against the protocol")
)

// ClientConfig says how a picker is asked.
type ClientConfig struct {
	// Address is "host:port"; every address that a host name resolves to is asked in
	// turn.
	Address string
	// TLS is what it is asked with; nil: plain text.
	TLS *tls.Config
	// Buffered has bodies sent in the mode BUFFERED, otherwise FULL_DUPLEX_STREAMED.
	Buffered bool
	// TellHead and TellBody say what it is told of answers. A picker that asks for
	// bodies (mode_override) gets them with TellHead too.
	TellHead, TellBody bool
	// MessageLimit bounds one message, and the body that the picker makes of the one
	// it was given, in bytes.
	MessageLimit int
}

// A Client asks an endpoint picker: over one connection to each of its replicas,
// which is kept. It is safe for concurrent use.
type Client struct {
	config ClientConfig
	conn   atomic.Pointer[grpc.ClientConn]
}

// serviceConfig has replicas asked in turn, as long as they say that they serve, if
// they say anything of it.
const serviceConfig = `{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}`

// NewClient makes a Client, which begins to connect.
func NewClient(c ClientConfig) *Client {
	client := &Client{config: c}
	client.Reconnect()
	return client
}

// Reconnect lets the connections go, and whatever was asked over them, for new ones.
// It is for a picker that says nothing more.
func (c *Client) Reconnect() {
	with := insecure.NewCredentials()
	if c.config.TLS != nil {
		with = credentials.NewTLS(c.config.TLS)
	}
	conn, err := grpc.NewClient("dns:///"+c.config.Address,
		grpc.WithTransportCredentials(with),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(c.config.MessageLimit), grpc.MaxCallSendMsgSize(c.config.MessageLimit)),
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		panic(err) // of our own options
	}
	conn.Connect()
	if old := c.conn.Swap(conn); old != nil {
		old.Close()
	}
}

// Close ends everything that is being asked, and the connections.
func (c *Client) Close() { c.conn.Load().Close() }

// A Question is a request that a picker is asked about.
type Question struct {
	Head *message.Request
	// Body is all of the request's body, in pieces, none of them changed before Ask
	// returns. Without any, there is none.
	Body [][]byte
	// Subset lists the only endpoints that may be named, as "ip:port"; nil: any.
	Subset []string
	// Timeout bounds the asking.
	Timeout time.Duration
	// Wait has a picker that cannot be reached waited for, as long as there is time.
	Wait bool
}

// Ask asks where a request goes. The context is the request's: when it is done the
// picker is told that the client has gone. A Ruling is to be ended; the error is one
// of ErrTimeout, ErrUnavailable and ErrProtocol, or the context's.
func (c *Client) Ask(ctx context.Context, q *Question) (*Ruling, error) {
	// What the picker is told last may leave when the request has ended.
	asking, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stay := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	timer := time.AfterFunc(q.Timeout, func() { cancel(ErrTimeout) })
	defer timer.Stop()
	rpc, err := extprocv3.NewExternalProcessorClient(c.conn.Load()).Process(asking, grpc.WaitForReady(q.Wait))
	if err == nil {
		r := newRuling(c.config, rpc, cancel)
		if err = r.ask(q); err == nil {
			r.stay = stay
			return r, nil
		}
	}
	stay()
	cause := context.Cause(asking)
	cancel(nil)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case cause == ErrTimeout:
		return nil, fmt.Errorf("%w: %s", ErrTimeout, q.Timeout)
	case errors.Is(err, ErrProtocol):
		return nil, err
	case err == io.EOF:
		return nil, fmt.Errorf("%w: it ended before it had named an endpoint", ErrProtocol)
	}
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unavailable, codes.Canceled: // ours has not ended
		return nil, fmt.Errorf("%w: %s", ErrUnavailable, s.Message())
	}
	return nil, fmt.Errorf("%w: it failed with %s: %s", ErrProtocol, s.Code(), s.Message())
}
