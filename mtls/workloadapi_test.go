package mtls

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// agent is a SPIFFE Workload API on a unix socket, as a SPIRE agent's.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	t      testing.TB
	socket string
	server *grpc.Server

	mu     sync.Mutex
	says   func() (*workload.X509SVIDResponse, error)
	change chan struct{} // closed when says changes
}

// startAgent serves what says answers to those who ask.
func startAgent(t testing.TB, socket string, says func() (*workload.X509SVIDResponse, error)) *agent {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, socket: socket, server: grpc.NewServer(), says: says, change: make(chan struct{})}
	workload.RegisterSpiffeWorkloadAPIServer(a.server, a)
	var done sync.WaitGroup
	done.Go(func() { a.server.Serve(listener) })
	t.Cleanup(func() { a.stop(); done.Wait() })
	return a
}

func (a *agent) stop() { a.server.Stop() }

// say changes what the agent answers, and pushes it.
func (a *agent) say(says func() (*workload.X509SVIDResponse, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.says = says
	close(a.change)
	a.change = make(chan struct{})
}

func (a *agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	// SPIFFE Workload Endpoint, section 6: without it the request may be forged.
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md.Get("workload.spiffe.io")) != 1 {
		return status.Error(codes.InvalidArgument, "no security header")
	}
	for {
		a.mu.Lock()
		says, change := a.says, a.change
		a.mu.Unlock()
		answer, err := says()
		if err != nil {
			return err
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
		select {
		case <-change:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func der(certs []*x509.Certificate) (all []byte) {
	for _, c := range certs {
		all = append(all, c.Raw...)
	}
	return all
}

// svid is an answer of the Workload API: an identity issued by ca, with these
// roots of its trust domain, and another trust domain's.
func svid(t testing.TB, ca *CA, id spiffeid.ID, roots []*x509.Certificate, federated *CA) *workload.X509SVIDResponse {
	t.Helper()
	cert := issue(t, ca, id)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, c := range cert.Certificate {
		chain = append(chain, c...)
	}
	answer := &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: id.String(), X509Svid: chain, X509SvidKey: key, Bundle: der(roots)}}}
	if federated != nil {
		answer.FederatedBundles = map[string][]byte{federated.domain.IDString(): der(federated.Roots())}
	}
	return answer
}

func answering(r *workload.X509SVIDResponse) func() (*workload.X509SVIDResponse, error) {
	return func() (*workload.X509SVIDResponse, error) { return r, nil }
}

func failing(code codes.Code, text string) func() (*workload.X509SVIDResponse, error) {
	return func() (*workload.X509SVIDResponse, error) { return nil, status.Error(code, text) }
}

// await returns when what it waits for has come about.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("in vain: ", what)
		}
	}
}

func TestWorkloadAPI(t *testing.T) {
	ca, theirs := newCA(t, domain), newCA(t, abroad)
	below, err := ca.Intermediate()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "socket")
	s := open(t, WorkloadAPI{Socket: socket})
	await(t, "there is no agent yet", func() bool {
		return s.Err() != nil && strings.Contains(s.Err().Error(), "is its agent up")
	})
	a := startAgent(t, socket, failing(codes.PermissionDenied, "no identity issued"))
	await(t, "the agent does not know us yet", func() bool {
		return strings.Contains(fmt.Sprint(s.Err()), "no identity issued (is its agent up, and is this workload registered there?)")
	})
	if s.Ready() {
		t.Error("ready without an identity")
	}
	a.say(answering(svid(t, below, waypoint, ca.Roots(), theirs)))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if c := s.current.Load(); c.id != waypoint || c.domains != "abroad.example, cluster.local" || len(c.cert.Certificate) != 2 || s.Err() != nil {
		t.Errorf("%s, roots of %s, %d certificates, %v", c.id, c.domains, len(c.cert.Certificate), s.Err())
	}
	connect(t, s.ServerConfig(), open(t, Throwaway{CA: ca, ID: vllm}).ClientConfig(waypoint)).ok(t)
	connect(t, s.ServerConfig(), open(t, Throwaway{CA: theirs, ID: gateway, Federated: []*CA{ca}}).ClientConfig(waypoint)).ok(t)

	// An answer that cannot be used changes nothing, and the stream goes on.
	bad := svid(t, below, waypoint, ca.Roots(), theirs)
	bad.Svids[0].X509SvidKey = []byte("x")
	a.say(answering(bad))
	await(t, "the bad answer is told", func() bool { return s.Err() != nil })
	if !s.Ready() || s.ID() != waypoint {
		t.Error("a bad answer took the identity away")
	}
	a.say(answering(svid(t, below, vllm, ca.Roots(), nil)))
	await(t, "the new identity", func() bool { return s.ID() == vllm })
	if domains := s.current.Load().domains; domains != "cluster.local" {
		t.Errorf("roots of %s: those that were taken back are trusted", domains)
	}

	// The client of the Workload API gives up when it is told that it asks in a
	// way that is invalid. We do not.
	a.say(failing(codes.InvalidArgument, "old agent"))
	await(t, "the client gave up", func() bool { return s.Err() != nil })
	a.stop()
	startAgent(t, socket, answering(svid(t, ca, waypoint, ca.Roots(), nil)))
	await(t, "the new agent", func() bool { return s.ID() == waypoint })
}

func TestWorkloadAPIAddress(t *testing.T) {
	for socket, want := range map[string]string{
		"":                         "unix:///run/secrets/workload-spiffe-uds/socket",
		"/run/agent.sock":          "unix:///run/agent.sock",
		"unix:///run/agent.sock":   "unix:///run/agent.sock",
		"tcp://127.0.0.1:8000":     "tcp://127.0.0.1:8000",
		"https://127.0.0.1":        "",
		"tcp://agent.example:8000": "",
		"agent.sock":               "",
	} {
		got, err := WorkloadAPI{Socket: socket}.Address()
		if err == nil && got != want || (err == nil) == (want == "") {
			t.Errorf("%q: %q, %v; want %q", socket, got, err, want)
		}
	}
	s := open(t, WorkloadAPI{Socket: "https://127.0.0.1"})
	await(t, "the address is told to be wrong", func() bool { return s.Err() != nil })
}

// TestRotationUnderLoad rotates certificates and roots every second, and
// replaces the agent in the middle: every request is answered, and streams that
// were there before go on.
func TestRotationUnderLoad(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	ca, next := newCA(t, domain), newCA(t, domain)
	roots := slices.Concat(ca.Roots(), next.Roots())
	a := startAgent(t, socket, answering(svid(t, ca, waypoint, roots, nil)))
	server, client := open(t, WorkloadAPI{Socket: socket}), open(t, WorkloadAPI{Socket: socket})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, s := range []*Source{server, client} {
		if err := s.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	load := startTraffic(t, server, client, waypoint)
	load.say("hello")
	rotations := 0
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for end := time.Now().Add(*rotate); time.Now().Before(end); rotations++ {
		<-tick.C
		switch rotations % 5 {
		case 0:
			// As a CA does that is to be replaced: its successor has been trusted
			// for a while when it begins to sign.
			ca, next = next, newCA(t, domain)
			roots = append(roots, next.Roots()...)
		case 3:
			a.stop()
			os.Remove(socket)
			a = startAgent(t, socket, answering(svid(t, ca, waypoint, roots, nil)))
		}
		before := [2]string{serial(server), serial(client)}
		a.say(answering(svid(t, ca, waypoint, roots, nil)))
		await(t, "both have the new certificate", func() bool { return serial(server) != before[0] && serial(client) != before[1] })
		load.say(fmt.Sprint("rotation ", rotations))
	}
	t.Logf("%d requests answered over %d rotations", load.end(), rotations)
	if load.requests.Load() < 10 || rotations < 2 {
		t.Error("too little happened for this test to show anything")
	}
}

func serial(s *Source) string { return s.current.Load().cert.Leaf.SerialNumber.String() }
