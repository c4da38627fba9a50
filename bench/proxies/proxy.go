package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// proxy is one under test: a process, or a few.
type proxy struct {
	name string
	to   dialer
	cmd  *exec.Cmd // nil: nothing between client and backend

	front *exec.Cmd // what stands in front of it, and is not measured; nil: nothing
}

// kinds are the proxies that can be started, at an address of their own, and how
// clients get there. An error says why one cannot.
var kinds = map[string]func(s *site, address string) (*exec.Cmd, dialer, error){
	"fairway-tls":   fairwayTLS,
	"fairway-hbone": fairwayHBONE,
	"haproxy":       haproxy,
	"nginx":         nginx,
	"envoy":         envoy,
	"net/http":      reverseProxy,
	"smg":           cacheAware("smg", "launch"),
	"sglang-router": cacheAware("sglang-router", "launch"),
	"vllm-router":   cacheAware("vllm-router"),
}

// start starts a proxy in front of the site's backends.
func start(name string, s *site) (*proxy, error) {
	if name == "direct" {
		return &proxy{name: name, to: tcp(s.backends[0])}, nil
	}
	p := &proxy{name: name}
	var err error
	address := freeAddress()
	kind, program, another := strings.Cut(name, "=")
	if !another {
		program = *binary
	}
	switch kind {
	case "fairway":
		p.cmd, p.to, err = fairway(program, s, address)
	case "epp":
		own := freeAddress()
		if p.front, err = envoyAsking(s, address, own); err == nil {
			p.cmd, p.to = picker(program, s, own), tcp(address)
		}
	default:
		if p.cmd, p.to, err = kinds[kind](s, address); err == nil && another {
			p.cmd.Path = program
		}
	}
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.dir, strings.ReplaceAll(name, "/", "-")+".log")
	os.Remove(path) // ext4 writes a file that was truncated to disk as soon as it is closed, while the next proxy is measured
	log, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	for _, cmd := range []*exec.Cmd{p.cmd, p.front} {
		if cmd == nil {
			continue
		}
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
		if err := cmd.Start(); err != nil {
			p.stop()
			return nil, err
		}
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := p.to.client()
		if err == nil {
			err = c.do(ready.requests[0])
			c.conn.Close()
		}
		if err == nil {
			return p, nil
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("it does not serve: %w (see %s)", err, log.Name())
		}
	}
}

// ready is asked of a proxy until it serves.
var ready = newLoad("ready", 1<<10, false)

func (p *proxy) stop() {
	for _, cmd := range []*exec.Cmd{p.cmd, p.front} {
		if cmd != nil && cmd.Process != nil {
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			cmd.Wait()
		}
	}
}

// processes are the proxy's own and those that it started (nginx's workers).
func (p *proxy) processes() []int {
	if p.cmd == nil {
		return nil
	}
	group := p.cmd.Process.Pid
	var pids []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		if f := statFields(path); f != nil && f[2] == strconv.Itoa(group) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// statFields are those of proc_pid_stat(5) behind the command: state, ppid, pgrp …
func statFields(path string) []string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

// cpu is the time that the proxy has computed, user and system.
func (p *proxy) cpu() time.Duration {
	const ticks = 100 // a second: USER_HZ, the same on every Linux architecture that Go runs on
	var sum int64
	for _, pid := range p.processes() {
		f := statFields(fmt.Sprintf("/proc/%d/stat", pid))
		if f == nil {
			continue
		}
		user, _ := strconv.ParseInt(f[11], 10, 64)
		system, _ := strconv.ParseInt(f[12], 10, 64)
		sum += user + system
	}
	return time.Duration(sum) * time.Second / ticks
}

// resident is the memory that the proxy holds, in bytes.
func (p *proxy) resident() int64 {
	var sum int64
	for _, pid := range p.processes() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if f := strings.Fields(string(text)); len(f) > 1 {
			pages, _ := strconv.ParseInt(f[1], 10, 64)
			sum += pages * int64(os.Getpagesize())
		}
	}
	return sum
}

func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// write puts a configuration into dir.
func write(dir, name, text string) (path string, err error) {
	path = filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// each repeats a line for each backend.
func each(backends []string, line func(i int, host, port string) string) string {
	var all strings.Builder
	for i, b := range backends {
		host, port, _ := net.SplitHostPort(b)
		all.WriteString(line(i, host, port))
	}
	return all.String()
}

// fairway as it is shipped: metrics, scraping and the access log on.
func fairway(program string, s *site, address string) (*exec.Cmd, dialer, error) {
	path, err := write(s.dir, "fairway.yaml", fmt.Sprintf("listen: {http: %q, metrics: %q, admin: %q}\npools:\n  - name: pool\n    endpoints: [%s]\n",
		address, freeAddress(), freeAddress(), each(s.backends, func(_ int, h, p string) string { return "http://" + net.JoinHostPort(h, p) + ", " })))
	return exec.Command(program, "serve", "--config", path), tcp(address), err
}

// picker is Fairway as the endpoint picker of an Envoy, as it is shipped.
func picker(program string, s *site, address string) *exec.Cmd {
	args := []string{"epp", "--listen", address, "--secure-serving=false", "--metrics", freeAddress(), "--admin", freeAddress()}
	for _, b := range s.backends {
		args = append(args, "--endpoint", "http://"+b)
	}
	return exec.Command(program, args...)
}

func haproxy(s *site, address string) (*exec.Cmd, dialer, error) {
	program, err := exec.LookPath("haproxy")
	if err != nil {
		return nil, nil, err
	}
	path, err := write(s.dir, "haproxy.cfg", fmt.Sprintf(`global
  nbthread 2
defaults
  mode http
  option http-no-delay
  http-reuse always
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend in
  bind %s
  default_backend pool
backend pool
  balance roundrobin
%s`, address, each(s.backends, func(i int, h, p string) string { return fmt.Sprintf("  server s%d %s:%s\n", i, h, p) })))
	return exec.Command(program, "-db", "-f", path), tcp(address), err
}

func nginx(s *site, address string) (*exec.Cmd, dialer, error) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		return nil, nil, err
	}
	path, err := write(s.dir, "nginx.conf", fmt.Sprintf(`daemon off;
worker_processes 2;
pid %[1]s/nginx.pid;
error_log stderr error;
events { worker_connections 32768; }
http {
  access_log off;
  client_max_body_size 0;
  client_body_buffer_size 1m;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  keepalive_requests 1000000000;
  upstream pool { %[3]s keepalive 128; keepalive_requests 1000000000; }
  server {
    listen %[2]s;
    location / {
      proxy_pass http://pool;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 1h;
    }
  }
}
`, s.dir, address, each(s.backends, func(_ int, h, p string) string { return fmt.Sprintf("server %s:%s;", h, p) })))
	return exec.Command(program, "-p", s.dir, "-c", path, "-e", "stderr"), tcp(address), err
}

func envoy(s *site, address string) (*exec.Cmd, dialer, error) {
	host, port, _ := net.SplitHostPort(address)
	cmd, err := runEnvoy(s.dir, fmt.Sprintf(`static_resources:
  listeners:
    - address: {socket_address: {address: %s, port_value: %s}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: in
                stream_idle_timeout: 0s
                http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
                route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: pool, timeout: 0s}}]}]}
  clusters:
    - name: pool
      type: STATIC
      connect_timeout: 5s
      circuit_breakers: {thresholds: [{max_connections: 40000, max_pending_requests: 40000, max_requests: 40000}]}
      load_assignment:
        cluster_name: pool
        endpoints: [{lb_endpoints: [%s]}]
`, host, port, each(s.backends, func(_ int, h, p string) string {
		return fmt.Sprintf("{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}},", h, p)
	})))
	return cmd, tcp(address), err
}

func runEnvoy(dir, config string) (*exec.Cmd, error) {
	program := os.Getenv("ENVOY")
	if program == "" {
		var err error
		if program, err = exec.LookPath("envoy"); err != nil {
			return nil, err
		}
	}
	path, err := write(dir, "envoy.yaml", config)
	return exec.Command(program, "-c", path, "-l", "error", "--concurrency", "2", "--use-dynamic-base-id"), err
}

// envoyAsking asks a picker where each request goes, and shows it all of the answers.
func envoyAsking(s *site, address, picker string) (*exec.Cmd, error) {
	host, port, _ := net.SplitHostPort(address)
	pickerHost, pickerPort, _ := net.SplitHostPort(picker)
	return runEnvoy(s.dir, fmt.Sprintf(`static_resources:
  listeners:
    - address: {socket_address: {address: %s, port_value: %s}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: in
                stream_idle_timeout: 0s
                http_filters:
                  - name: ext_proc
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
                      grpc_service: {envoy_grpc: {cluster_name: picker}, timeout: 10s}
                      processing_mode:
                        request_header_mode: SEND
                        request_body_mode: FULL_DUPLEX_STREAMED
                        request_trailer_mode: SEND
                        response_header_mode: SEND
                        response_body_mode: FULL_DUPLEX_STREAMED
                        response_trailer_mode: SEND
                      message_timeout: 300s
                  - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
                route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: original, timeout: 0s}}]}]}
  clusters:
    - name: original
      type: ORIGINAL_DST
      lb_policy: CLUSTER_PROVIDED
      connect_timeout: 5s
      original_dst_lb_config: {use_http_header: true, http_header_name: x-gateway-destination-endpoint}
      circuit_breakers: {thresholds: [{max_connections: 40000, max_pending_requests: 40000, max_requests: 40000}]}
    - name: picker
      type: STATIC
      connect_timeout: 5s
      circuit_breakers: {thresholds: [{max_connections: 40000, max_pending_requests: 40000, max_requests: 40000}]}
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config: {http2_protocol_options: {}}
      load_assignment:
        cluster_name: picker
        endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]
`, host, port, pickerHost, pickerPort))
}

// reverseProxy is this program again, as net/http/httputil's ReverseProxy.
func reverseProxy(s *site, address string) (*exec.Cmd, dialer, error) {
	self, err := os.Executable()
	return exec.Command(self, append([]string{"-reverse-proxy", address}, s.backends...)...), tcp(address), err
}

// cacheAware is one of the routers of the Python package index, with the policy that
// looks at prompts and otherwise its defaults. ROUTERS is where they are installed.
func cacheAware(name string, more ...string) func(*site, string) (*exec.Cmd, dialer, error) {
	return func(s *site, address string) (*exec.Cmd, dialer, error) {
		program := filepath.Join(os.Getenv("ROUTERS"), name, "bin", name)
		if _, err := os.Stat(program); err != nil {
			return nil, nil, err
		}
		host, port, _ := net.SplitHostPort(address)
		_, metricsPort, _ := net.SplitHostPort(freeAddress())
		args := append(more, "--host", host, "--port", port, "--prometheus-host", host, "--prometheus-port", metricsPort, "--log-level", "error", "--policy", "cache_aware", "--worker-urls")
		for _, b := range s.backends {
			args = append(args, "http://"+b)
		}
		return exec.Command(program, args...), tcp(address), nil
	}
}

// serveReverseProxy is what net/http has for the purpose, with idle connections
// for all and no buffering.
func serveReverseProxy(address string, backends []string) error {
	var next atomic.Uint64
	p := &httputil.ReverseProxy{
		FlushInterval: -1,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: backends[next.Add(1)%uint64(len(backends))]})
		},
	}
	return http.ListenAndServe(address, p)
}
