package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
)

// Flags of the reference picker that mean something do it; of the others one line tells.
func TestReferenceFlags(t *testing.T) {
	for _, tt := range []struct {
		args  string // as in its manifests
		wrong string
		want  string // listen, metrics, level, json, scrape's interval and path
		warns string
	}{
		{"", "", ":9002 '' '' false 100ms '/metrics'", ""},
		{
			"--pool-name llama --pool-namespace default --v 4 --zap-encoder json --grpc-port 9102 --grpc-health-port 9003 --metrics-port 9090 --config-file /config/plugins.yaml --kv-cache-usage-percentage-metric vllm:kv_cache_usage_perc",
			"", ":9102 ':9090' 'debug' true 100ms '/metrics'", "--pool-name --pool-namespace --config-file",
		},
		{
			"--pool-group inference.networking.k8s.io -v 1 --tracing=false --metrics-endpoint-auth=false --ha-enable-leader-election --health-checking --enable-pprof=false --enable-cert-reload=true",
			"", ":9002 '' '' false 100ms '/metrics'", "--pool-group --ha-enable-leader-election --enable-pprof --tracing",
		},
		{"--refresh-metrics-interval 50ms --model-server-metrics-path /m --metrics-endpoint-auth", "", ":9002 '' '' false 50ms '/m'", "--metrics-endpoint-auth"},
		{"--total-queued-requests-metric=sglang:num_queue_reqs --secure-serving=false --cert-path=", "", ":9002 '' '' false 100ms '/metrics'", "--total-queued-requests-metric"},
		{"--v 5 --log-level warn", "", ":9002 '' 'warn' false 100ms '/metrics'", ""},
		{"--grpc-port 9002 --listen :9002", "--grpc-port and --listen", "", ""},
		{"--metrics-port 9090 --metrics :9090", "--metrics-port and --metrics", "", ""},
		{"--grpc-port 70000", "70000", "", ""},
		{"--zap-encoder xml", "xml", "", ""},
		{"--pool-nam llama", "--pool-nam", "", ""},
	} {
		var o eppOptions
		cmd := &cobra.Command{}
		cmd.Flags().Bool("json", false, "")
		o.flags(cmd)
		err := cmd.ParseFlags(strings.Fields(tt.args))
		if err == nil {
			err = o.theirs.apply(cmd, &o)
		}
		if tt.wrong != "" || err != nil {
			if tt.wrong == "" || err == nil || !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("%s: %v, want something about %q", tt.args, err, tt.wrong)
			}
			continue
		}
		c := file.Default()
		o.theirs.adjust(c)
		got := o.listen + " '" + o.serve.metrics + "' '" + o.serve.level + "' " + strconv.FormatBool(cli.JSON(cmd)) + " " + c.World.Scrape.Interval.String() + " '" + c.World.Scrape.Path + "'"
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.args, got, tt.want)
		}
		var said bytes.Buffer
		o.theirs.warn(cmd, slog.New(slog.NewTextHandler(&said, nil)))
		if n := strings.Count(said.String(), "\n"); tt.warns == "" && n > 0 || tt.warns != "" && (n != 1 || !strings.Contains(said.String(), `flags="`+tt.warns+`"`) && !strings.Contains(said.String(), "flags="+tt.warns+"\n")) {
			t.Errorf("%s: it says %q, want a line with %q", tt.args, said.String(), tt.warns)
		}
	}
}

// With the arguments of the reference picker's manifests, what its manifests expect is
// there: the protocol and health checks by TLS, health checks in plain text, metrics.
func TestReferenceManifest(t *testing.T) {
	var ports [3]string
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, ports[i], _ = net.SplitHostPort(l.Addr().String())
		l.Close()
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	var said bytes.Buffer
	go func() {
		ended <- cli.Execute(ctx, newRoot(), []string{"epp", "--endpoint", "http://127.0.0.1:1", "--admin", "127.0.0.1:0", "--lame-duck", "0s",
			"--pool-name", "llama", "--grpc-port", ports[0], "--grpc-health-port", ports[1], "--metrics-port", ports[2]}, io.Discard, &said)
	}()
	check := func(port string, with credentials.TransportCredentials, service string) {
		t.Helper()
		c, err := grpc.NewClient("127.0.0.1:"+port, grpc.WithTransportCredentials(with))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r, err := healthv1.NewHealthClient(c).Check(ctx, &healthv1.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
		if err != nil || r.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%s at port %s: %v, %v", service, port, r, err)
		}
	}
	check(ports[1], insecure.NewCredentials(), "inference-extension")
	check(ports[1], insecure.NewCredentials(), "liveness")
	check(ports[0], credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}), "envoy.service.ext_proc.v3.ExternalProcessor")
	r, err := http.Get("http://127.0.0.1:" + ports[2] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != 200 {
		t.Errorf("metrics: %s", r.Status)
	}
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d: %s", code, said.String())
	}
	http.DefaultClient.CloseIdleConnections()
}

// The flags that mean nothing are documented to.
func TestDocumentedReferenceFlags(t *testing.T) {
	page, err := os.ReadFile("../../docs/endpoint-picker.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range meaningless {
		if !strings.Contains(string(page), "`--"+m.name+"`") {
			t.Errorf("--%s is not documented", m.name)
		}
	}
}
