package mtls

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"istio.io/api/security/v1alpha1"

	"github.com/fairway-proxy/fairway/watch"
)

// What istiod has by default, and where pods find it.
const (
	DefaultIstioCAAddress = "istiod.istio-system.svc:15012"
	DefaultIstioToken     = "/var/run/secrets/tokens/istio-token"
	DefaultIstioRoots     = "/var/run/secrets/istio/root-cert.pem"
)

// IstioCA provides what istiod's CA, or another that speaks its protocol, signs
// for the service account of this pod (istio.v1.auth.IstioCertificateService in
// istio.io/api, security/v1alpha1/ca.proto). The token says who we are, whatever
// is in the request.
type IstioCA struct {
	// Address of the CA; empty means DefaultIstioCAAddress.
	Address string
	// Token is a file with the pod's token, projected for the audience
	// istio-ca and read anew for each request; empty means DefaultIstioToken.
	Token string
	// Roots is a file with what the CA's own TLS certificate chains to, read
	// anew for each request; empty means DefaultIstioRoots. The roots of
	// workloads come with our certificate.
	Roots string
	// ClusterID is the name of this cluster as istiod knows it; empty: not said.
	ClusterID string
	// TrustDomain is what we ask to be a member of; zero means cluster.local.
	// Istio's own CA does not look at it. One that passes requests on to the
	// Kubernetes signing API refuses those that ask for no identity, or a wrong
	// one.
	TrustDomain spiffeid.TrustDomain
	// Federated are files with the roots of other trust domains, taken up when
	// they change.
	Federated map[spiffeid.TrustDomain]string

	// dial connects to the CA; nil: by TCP.
	dial func(ctx context.Context, address string) (net.Conn, error)
}

// Timing of requests to a CA.
const (
	// signTimeout bounds one request, with its connection.
	signTimeout = 15 * time.Second
	// signLife is what we ask for, as Istio's proxies do; the CA decides.
	signLife = 24 * time.Hour
	// leastSignWait is the least time between two requests, whatever the CA
	// answers, and mostSignWait the most after failures.
	leastSignWait = time.Second
	mostSignWait  = time.Minute
)

// WithDefaults is ca with what is empty filled in.
func (ca IstioCA) WithDefaults() IstioCA {
	ca.Address = cmp.Or(ca.Address, DefaultIstioCAAddress)
	ca.Token = cmp.Or(ca.Token, DefaultIstioToken)
	ca.Roots = cmp.Or(ca.Roots, DefaultIstioRoots)
	ca.TrustDomain = cmp.Or(ca.TrustDomain, spiffeid.RequireTrustDomainFromString("cluster.local"))
	return ca
}

func (ca IstioCA) open(s *Source) func(context.Context) {
	ca = ca.WithDefaults()
	others := newFederation(ca.Federated)
	files := watch.Files{Paths: others.paths}
	return func(ctx context.Context) {
		foreign, err := others.roots(files.Read())
		if err != nil {
			s.fail(err)
		}
		var watching sync.WaitGroup
		defer watching.Wait()
		changed := make(chan federated)
		if len(files.Paths) > 0 {
			watching.Go(func() {
				files.Run(ctx, func(contents [][]byte, err error) {
					var f federated
					f.roots, f.err = others.roots(contents, err)
					select {
					case changed <- f:
					case <-ctx.Done():
					}
				})
			})
		}

		var signed Identity // the last one, without what is federated
		wait := backoff{least: leastSignWait, most: mostSignWait}
		timer := time.NewTimer(0)
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case f := <-changed:
				if f.err != nil {
					s.fail(f.err)
					continue
				}
				foreign = f.roots
				if len(signed.Certificate.Certificate) > 0 {
					s.offer(signed.with(foreign))
				}
			case <-timer.C:
				next := wait.Next()
				i, err := ca.request(ctx)
				switch {
				case ctx.Err() != nil:
					return
				case err != nil:
					s.fail(err)
				case s.offer(i.with(foreign)) == nil:
					signed = i
					wait.Reset()
					next = renewal(time.Until(s.Expiry()))
				}
				timer.Reset(next)
			}
		}
	}
}

// federated is what a change of the files of other trust domains brought.
type federated struct {
	roots map[spiffeid.TrustDomain][]*x509.Certificate
	err   error
}

// renewal is when to renew a certificate with so much life left: after half of
// it, more or less, so that a fleet that started together does not ask together.
func renewal(left time.Duration) time.Duration {
	return max(leastSignWait, time.Duration(float64(left)*(0.45+mathrand.Float64()/10)))
}

// newKey makes a key of ECDSA P-256: signing with RSA-2048 costs nearly a
// millisecond a handshake.
func newKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// request makes a key and has its certificate signed.
func (ca IstioCA) request(ctx context.Context) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	token, err := watch.ReadFile(ca.Token)
	if err != nil {
		return Identity{}, fmt.Errorf("the token for the CA: %w (mount a projected token for the audience istio-ca)", err)
	}
	token = bytes.TrimSpace(token)
	key, err := newKey()
	if err != nil {
		return Identity{}, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, ca.template(token), key)
	if err != nil {
		return Identity{}, err
	}
	conn, err := ca.connect()
	if err != nil {
		return Identity{}, err
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+string(token))
	if ca.ClusterID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", ca.ClusterID)
	}
	answer, err := v1alpha1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &v1alpha1.IstioCertificateRequest{
		Csr:              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		ValidityDuration: int64(signLife / time.Second),
	})
	if err != nil {
		return Identity{}, fmt.Errorf("the CA at %s: %w%s", ca.Address, err, signRemedies[status.Code(err)])
	}
	i, err := signedBy(answer.GetCertChain())
	if err != nil {
		return Identity{}, fmt.Errorf("the answer of the CA at %s: %w", ca.Address, err)
	}
	i.Certificate.PrivateKey = key
	return i, nil
}

// signRemedies say what to look at when a CA refuses.
var signRemedies = map[codes.Code]string{
	codes.Unauthenticated:  " (is the token for the audience istio-ca, and the name of the cluster the one istiod knows?)",
	codes.PermissionDenied: " (may this service account get certificates there?)",
	codes.Unavailable:      " (is it up, and does its certificate chain to the roots given for it?)",
}

// connect makes a connection for one request: there is one in many hours.
func (ca IstioCA) connect() (*grpc.ClientConn, error) {
	text, err := watch.ReadFile(ca.Roots)
	if err != nil {
		return nil, fmt.Errorf("the roots of the CA: %w", err)
	}
	roots, err := certificates(text)
	if err != nil {
		return nil, fmt.Errorf("the roots of the CA: %s: %w", ca.Roots, err)
	}
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	host, _, err := net.SplitHostPort(ca.Address)
	if err != nil {
		return nil, fmt.Errorf("the address of the CA: %w: want host:port", err)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: host})),
		grpc.WithNoProxy(), // it is in the cluster
	}
	if ca.dial != nil {
		options = append(options, grpc.WithContextDialer(ca.dial))
	}
	return grpc.NewClient("passthrough:///"+ca.Address, options...)
}

// template is what we ask to have signed. As far as the token tells it, it names
// our identity as Istio forms it. The token is not verified: that is the CA's
// business, and it is our own.
func (ca IstioCA) template(token []byte) *x509.CertificateRequest {
	template := &x509.CertificateRequest{}
	parts := bytes.Split(token, []byte{'.'})
	if len(parts) != 3 {
		return template
	}
	payload, err := base64.RawURLEncoding.DecodeString(string(parts[1]))
	if err != nil {
		return template
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return template
	}
	account, ok := strings.CutPrefix(claims.Subject, "system:serviceaccount:")
	namespace, account, ok2 := strings.Cut(account, ":")
	if !ok || !ok2 {
		return template
	}
	if id, err := spiffeid.FromSegments(ca.TrustDomain, "ns", namespace, "sa", account); err == nil {
		template.URIs = []*url.URL{id.URL()}
	}
	return template
}

// signedBy reads the answer of a CA: the leaf first, then intermediates, the
// root or roots last. Each element is PEM, and may hold several certificates.
func signedBy(answer []string) (Identity, error) {
	if len(answer) < 2 {
		return Identity{}, fmt.Errorf("%d elements: want a certificate, what is between, and a root", len(answer))
	}
	var i Identity
	last := len(answer) - 1
	for n, text := range answer[:last] {
		certs, err := certificates([]byte(text))
		if err != nil {
			return Identity{}, fmt.Errorf("element %d: %w", n+1, err)
		}
		for _, cert := range certs {
			i.Certificate.Certificate = append(i.Certificate.Certificate, cert.Raw)
		}
		if n == 0 {
			i.Certificate.Leaf = certs[0]
		}
	}
	roots, err := certificates([]byte(answer[last]))
	if err != nil {
		return Identity{}, fmt.Errorf("element %d: %w", last+1, err)
	}
	id, err := leafID(i.Certificate.Leaf)
	if err != nil {
		return Identity{}, fmt.Errorf("not an X.509-SVID: %w", err)
	}
	i.Roots = map[spiffeid.TrustDomain][]*x509.Certificate{id.TrustDomain(): roots}
	return i, nil
}
