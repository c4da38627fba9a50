package conformance_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// kubelet does what the controllers and nodes of a cluster would, as far as the tests see it. It stands before the API
// server, to answer for commands in pods.
type kubelet struct {
	t          *testing.T
	kubeconfig string // names it
	clients    kubernetes.Interface
	gateways   client.Client
	network    string // of pods: the first bytes of their addresses
	pods       []*corev1.Pod
	made       map[string]bool // names of what it has made

	mu        sync.Mutex
	logs      map[string]*lines // by namespace/name of a pod, guarded by mu
	addresses map[string]bool   // of pods, guarded by mu
}

// lines are what a program printed, and when.
type lines struct {
	mu   sync.Mutex
	text []string
	at   []time.Time
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(string(p)) {
		l.text, l.at = append(l.text, line), append(l.at, time.Now())
	}
	return len(p), nil
}

// log answers with what a pod printed, since a time if it is asked so.
func (k *kubelet) log(w http.ResponseWriter, r *http.Request, pod string) {
	k.mu.Lock()
	l := k.logs[pod]
	k.mu.Unlock()
	if l == nil {
		return
	}
	since, _ := time.Parse(time.RFC3339, r.URL.Query().Get("sinceTime"))
	if n, err := strconv.Atoi(r.URL.Query().Get("sinceSeconds")); err == nil {
		since = time.Now().Add(-time.Duration(n) * time.Second)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, line := range l.text {
		if !l.at[i].Before(since) {
			io.WriteString(w, line)
		}
	}
}

func startKubelet(t *testing.T) *kubelet {
	c, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	c.QPS, c.Burst = 200, 400
	k := &kubelet{t: t, network: os.Getenv("CONFORMANCE_NETWORK"), made: make(map[string]bool), logs: make(map[string]*lines), addresses: make(map[string]bool)}
	if k.clients, err = kubernetes.NewForConfig(c); err != nil {
		t.Fatal(err)
	}
	if k.gateways, err = client.New(c, client.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := gatewayv1.Install(k.gateways.Scheme()); err != nil {
		t.Fatal(err)
	}
	transport, err := rest.TransportFor(c)
	if err != nil {
		t.Fatal(err)
	}
	server, err := url.Parse(c.Host)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(server)
	proxy.Transport, proxy.FlushInterval = transport, -1
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if parts := strings.Split(r.URL.Path, "/"); len(parts) == 8 && parts[7] == "exec" {
			k.exec(w, r, parts[4])
			return
		} else if len(parts) == 8 && parts[7] == "log" {
			k.log(w, r, parts[4]+"/"+parts[6])
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	k.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}], clusters: [{name: c, cluster: {server: %q}}]}`, front.URL)
	if err := os.WriteFile(k.kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			k.sync(ctx)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		front.CloseClientConnections()
		front.Close()
	})
	return k
}

// sync makes what is missing.
func (k *kubelet) sync(ctx context.Context) {
	deployments, err := k.clients.AppsV1().Deployments("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for i := range deployments.Items {
		if d := &deployments.Items[i]; strings.HasPrefix(d.Namespace, "gateway-conformance") && !k.made[d.Namespace+"/"+d.Name] {
			k.made[d.Namespace+"/"+d.Name] = true
			replicas := 1
			if d.Spec.Replicas != nil {
				replicas = int(*d.Spec.Replicas)
			}
			for n := range replicas {
				k.pod(ctx, d, n)
			}
		}
	}
	services, err := k.clients.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for i := range services.Items {
		for _, p := range k.pods {
			if s := &services.Items[i]; len(s.Spec.Selector) > 0 && s.Namespace == p.Namespace && labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(p.Labels)) {
				k.slice(ctx, s, p)
			}
		}
	}
	var gateways gatewayv1.GatewayList
	if k.gateways.List(ctx, &gateways) != nil {
		return
	}
	for i := range gateways.Items {
		g := &gateways.Items[i]
		// An installation of Fairway brings its Gateway with a Service.
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: g.Namespace, Name: g.Name}}
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
		if _, err := k.clients.CoreV1().Services(g.Namespace).Create(ctx, s, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
			fmt.Println("kubelet:", err)
		}
	}
}

// pod runs an echo server and declares its pod.
func (k *kubelet) pod(ctx context.Context, d *appsv1.Deployment, n int) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: fmt.Sprintf("%s-conformance-%d", d.Name, n), Labels: d.Spec.Template.Labels}}
	for _, c := range d.Spec.Template.Spec.Containers {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: c.Name, Image: c.Image})
	}
	p.Spec.NodeName = "node"
	ip := fmt.Sprintf("%s.%d.%d", k.network, 1+len(k.pods)/250, 1+len(k.pods)%250)
	env := make(map[string]string)
	for _, e := range d.Spec.Template.Spec.Containers[0].Env {
		env[e.Name] = e.Value
	}
	if env["GRPC_ECHO_SERVER"]+env["TCP_ECHO_SERVER"]+env["UDP_ECHO_SERVER"] == "" && d.Name != "coredns" {
		web, h2c := freePort(), freePort()
		cmd := exec.Command(echo)
		cmd.Env = append(os.Environ(), "POD_NAME="+p.Name, "NAMESPACE="+p.Namespace, "HTTP_PORT="+web, "H2C_PORT="+h2c)
		printed := new(lines)
		cmd.Stdout = printed
		k.mu.Lock()
		k.logs[p.Namespace+"/"+p.Name], k.addresses[ip] = printed, true
		k.mu.Unlock()
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			fmt.Println("kubelet:", err)
			return
		}
		k.t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		// It listens at all addresses; pods have ports of their own.
		for port, to := range map[string]string{"3000": web, "3001": h2c, "8080": web} {
			k.forward(net.JoinHostPort(ip, port), net.JoinHostPort("127.0.0.1", to))
		}
	}
	made, err := k.clients.CoreV1().Pods(p.Namespace).Create(ctx, p, metav1.CreateOptions{})
	if err == nil {
		made.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
		made, err = k.clients.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, made, metav1.UpdateOptions{})
	}
	if err != nil {
		fmt.Println("kubelet:", err)
		return
	}
	k.pods = append(k.pods, made)
}

// slice declares a pod an endpoint of a Service.
func (k *kubelet) slice(ctx context.Context, s *corev1.Service, p *corev1.Pod) {
	out := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name + "-" + p.Name, Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}}, AddressType: discoveryv1.AddressTypeIPv4}
	if k.made[s.Namespace+"/"+string(s.UID)+"/"+p.Name] {
		return
	}
	ready := true
	out.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{p.Status.PodIP}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}}}
	for _, port := range s.Spec.Ports {
		name, protocol, to := port.Name, port.Protocol, port.TargetPort.IntVal
		if to == 0 {
			to = port.Port
		}
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &to, AppProtocol: port.AppProtocol})
	}
	if _, err := k.clients.DiscoveryV1().EndpointSlices(s.Namespace).Create(ctx, out, metav1.CreateOptions{}); err == nil || apierrors.IsAlreadyExists(err) {
		k.made[s.Namespace+"/"+string(s.UID)+"/"+p.Name] = true
	} else if ctx.Err() == nil {
		fmt.Println("kubelet:", err)
	}
}

func (k *kubelet) forward(from, to string) {
	l, err := net.Listen("tcp", from)
	if err != nil {
		fmt.Println("kubelet:", err)
		return
	}
	k.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				// The echo server may need a moment to listen.
				for try := 0; try < 100; try++ {
					if d, err := net.Dial("tcp", to); err == nil {
						var both sync.WaitGroup
						both.Go(func() { io.Copy(d, c); d.(*net.TCPConn).CloseWrite() })
						both.Go(func() { io.Copy(c, d); c.(*net.TCPConn).CloseWrite() })
						both.Wait()
						d.Close()
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
			}()
		}
	}()
}

// exec runs the echo client "in" a pod: its requests go to Services by the mesh.
func (k *kubelet) exec(w http.ResponseWriter, r *http.Request, namespace string) {
	if _, err := httpstream.Handshake(r, w, []string{"v4.channel.k8s.io"}); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	arrived := make(chan httpstream.Stream, 8)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, replied <-chan struct{}) error {
		go func() {
			<-replied
			arrived <- s
		}()
		return nil
	})
	if conn == nil {
		return
	}
	defer conn.Close()
	streams := make(map[string]httpstream.Stream)
	for len(streams) < 3 { // error, stdout and stderr
		select {
		case s := <-arrived:
			streams[s.Headers().Get("streamType")] = s
		case <-time.After(10 * time.Second):
			return
		}
	}
	text, err := k.client(r.Context(), namespace, r.URL.Query()["command"])
	status := metav1.Status{Status: metav1.StatusSuccess}
	if err != nil {
		status = metav1.Status{Status: metav1.StatusFailure, Message: err.Error()}
	}
	io.WriteString(streams["stdout"], text)
	streams["stdout"].Close()
	streams["stderr"].Close()
	json.NewEncoder(streams["error"]).Encode(status)
	streams["error"].Close()
	select { // the client closes when it has read all
	case <-conn.CloseChan():
	case <-time.After(time.Second):
	}
}

// client is Istio's echo client, as far as the tests use it.
func (k *kubelet) client(ctx context.Context, namespace string, command []string) (string, error) {
	if len(command) < 2 || command[0] != "client" {
		return "", fmt.Errorf("what is %q?", command)
	}
	target, err := url.Parse(command[1])
	if err != nil {
		return "", err
	}
	method, count, header := "GET", 1, make(http.Header)
	for i := 2; i < len(command); i++ {
		switch name, value, _ := strings.Cut(command[i], "="); name {
		case "--method":
			method = value
		case "--count":
			count, _ = strconv.Atoi(value)
		case "-H":
			i++
			name, value, _ := strings.Cut(command[i], ":")
			header.Add(name, value)
		}
	}
	ip := target.Hostname()
	if net.ParseIP(ip) == nil {
		name, rest, _ := strings.Cut(ip, ".")
		if in, _, _ := strings.Cut(rest, "."); in != "" {
			namespace = in
		}
		s, err := k.clients.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		ip = s.Spec.ClusterIP
	}
	port := target.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[target.Scheme]
	}
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		k.mu.Lock()
		direct := k.addresses[ip] // the waypoint is for Services
		k.mu.Unlock()
		if direct {
			return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(ip, port))
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", mesh)
		if err == nil {
			_, err = fmt.Fprintln(c, net.JoinHostPort(ip, port))
		}
		return c, err
	}}
	one := &http.Client{Transport: transport, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var out strings.Builder
	for range count {
		r, err := http.NewRequestWithContext(ctx, method, target.String(), nil)
		if err != nil {
			return "", err
		}
		r.Header = header.Clone()
		if host := header.Get("Host"); host != "" {
			r.Host = host
		}
		resp, err := one.Do(r)
		if err != nil {
			return "", err
		}
		body, _ := io.ReadAll(bufio.NewReader(resp.Body))
		resp.Body.Close()
		fmt.Fprintf(&out, "StatusCode=%d\n", resp.StatusCode)
		writeHeader(&out, "ResponseHeader", resp.Header)
		var said struct {
			Host, Method, Pod string
			Headers           http.Header
		}
		if json.Unmarshal(body, &said) == nil {
			fmt.Fprintf(&out, "Host=%s\nMethod=%s\nHostname=%s\n", said.Host, said.Method, said.Pod)
			writeHeader(&out, "RequestHeader", said.Headers)
		}
		out.WriteString("\n")
	}
	return out.String(), nil
}

func writeHeader(w io.Writer, field string, h http.Header) {
	for name, values := range h {
		for _, v := range slices.Clone(values) {
			fmt.Fprintf(w, "%s=%s:%s\n", field, name, v)
		}
	}
}

func freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}
