package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
)

// DefaultSocket is where SPIRE's and Istio's CSI drivers mount the socket of the
// Workload API.
const DefaultSocket = "/run/secrets/workload-spiffe-uds/socket"

// WorkloadAPI provides what a SPIFFE Workload API, such as a SPIRE agent's, says
// we are, and the roots of the trust domains that ours is federated with. It
// pushes what it renews. We are the first identity that it names (SPIFFE Workload
// API, section 5.3).
type WorkloadAPI struct {
	// Socket is the path of its socket, or a URI as in SPIFFE_ENDPOINT_SOCKET
	// (unix:///path, tcp://ip:port); empty means DefaultSocket.
	Socket string
}

// Address is where the Workload API is, as a URI, or what is wrong with Socket.
func (w WorkloadAPI) Address() (string, error) {
	address := w.Socket
	if address == "" {
		address = DefaultSocket
	}
	if !strings.Contains(address, "://") {
		if !path.IsAbs(address) {
			return "", errors.New("want an absolute path, or a URI such as unix:///path")
		}
		address = "unix://" + address
	}
	return address, workloadapi.ValidateAddress(address)
}

// Waits between attempts to reach the Workload API. It is on the same machine.
const (
	leastAgentWait = time.Second
	mostAgentWait  = 15 * time.Second
)

func (w WorkloadAPI) open(s *Source) func(context.Context) {
	return func(ctx context.Context) {
		address, err := w.Address()
		if err != nil {
			s.fail(fmt.Errorf("the Workload API's socket %s: %w", w.Socket, err))
			return
		}
		client, err := workloadapi.New(ctx, workloadapi.WithAddr(address), workloadapi.WithBackoffStrategy(agentBackoff{}),
			workloadapi.WithDialOptions(grpc.WithConnectParams(grpc.ConnectParams{
				// A connection is tried anew whenever the stream is.
				Backoff:           grpcbackoff.Config{BaseDelay: leastAgentWait / 2, Multiplier: 1, MaxDelay: leastAgentWait / 2},
				MinConnectTimeout: 5 * time.Second,
			})))
		if err != nil {
			s.fail(fmt.Errorf("the Workload API at %s: %w", address, err))
			return
		}
		defer client.Close()
		watcher := agentWatcher{ctx, s, address}
		wait := agentBackoff{}.NewBackoff()
		for {
			// It returns when the agent cancels, or says that our request is
			// invalid. An agent that is replaced may not.
			client.WatchX509Context(ctx, watcher)
			if !sleep(ctx, wait.Next()) {
				return
			}
		}
	}
}

type agentBackoff struct{}

func (agentBackoff) NewBackoff() workloadapi.Backoff {
	return &backoff{least: leastAgentWait, most: mostAgentWait}
}

// agentWatcher is told what the Workload API says.
type agentWatcher struct {
	ctx     context.Context
	source  *Source
	address string
}

func (w agentWatcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	svid := c.DefaultSVID()
	i := Identity{Certificate: tls.Certificate{PrivateKey: svid.PrivateKey}, Roots: make(map[spiffeid.TrustDomain][]*x509.Certificate)}
	for _, cert := range svid.Certificates {
		i.Certificate.Certificate = append(i.Certificate.Certificate, cert.Raw)
	}
	for _, bundle := range c.Bundles.Bundles() {
		i.Roots[bundle.TrustDomain()] = bundle.X509Authorities()
	}
	w.source.offer(i)
}

func (w agentWatcher) OnX509ContextWatchError(err error) {
	if w.ctx.Err() == nil {
		w.source.fail(fmt.Errorf("the Workload API at %s: %w (is its agent up, and is this workload registered there?)", w.address, err))
	}
}
