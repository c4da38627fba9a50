package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/doctor"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/discovery/kube"
	"github.com/fairway-proxy/fairway/mtls"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/hbone"
)

// expirySoon is when a certificate should have been renewed long since: the
// shortest that are usual live for an hour, and are renewed at half of that.
const expirySoon = 5 * time.Minute

func newDoctor() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor [--config fairway.yaml | --endpoint URL… | --kubernetes]",
		Short: "Ask every engine what a router needs to know, and say what is off and how to mend it",
		Long: `Doctor asks every engine of a configuration what a router needs to know of it, by
the way that requests would take, and says what is off and how to mend it.

Apart from pages (/health, /version, /metrics, /v1/models) it sends each engine
seven small requests for one token; --no-requests leaves these out. An engine that
wants an API key is sent that of OPENAI_API_KEY.

Exit code: 0 when there is no problem, 1 when there is one, 2 when the command was
misused.`,
		Example: `  fairway doctor --endpoint http://10.0.0.1:8000 --endpoint http://10.0.0.2:8000
  fairway doctor --config fairway.yaml --json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.serve.config, "config", "", "the configuration `file`")
	f.StringArrayVar(&o.serve.endpoints, "endpoint", nil, "the `URL` of an engine, http://host:port; once for each")
	f.BoolVar(&o.serve.kubernetes, "kubernetes", false, "ask the pods of a cluster's InferencePools")
	f.StringVar(&o.serve.trustDomain, "trust-domain", "cluster.local", "the mesh's trust `domain`, with --kubernetes")
	f.StringVar(&o.serve.kubeconfig, "kubeconfig", "", "the `file` that names the API server")
	f.BoolVar(&o.noRequests, "no-requests", false, "ask for pages only: no word on cached tokens and speed")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long an engine, or who issues our certificate, may take for an answer")
	return cmd
}

type doctorOptions struct {
	serve      serveOptions
	noRequests bool
	timeout    time.Duration
}

// doctorReport is what the doctor says.
type doctorReport struct {
	OK       bool                 `json:"ok"`
	Identity *identityView        `json:"identity,omitempty"`
	Pods     []*doctor.Diagnosis  `json:"pods"`
	Pools    []doctor.PoolFinding `json:"pools"`
}

// identityView is who we are in the mesh.
type identityView struct {
	SPIFFEID string           `json:"spiffe_id,omitempty"`
	Expires  *time.Time       `json:"expires,omitempty"`
	Findings []doctor.Finding `json:"findings"`
}

func (o *doctorOptions) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	config, err := o.load(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	report := doctorReport{OK: true}
	settings := proxy.Config{Log: log}
	if config.TLS != nil {
		identity := mtls.Open(config.TLS, log)
		defer identity.Close()
		dialer := &hbone.Dialer{TLS: func(expected spiffeid.ID) *tls.Config { return identity.ClientConfig(expected) }, Explain: identity.Explain}
		defer dialer.Close()
		settings.Tunnel = dialer.DialContext
		report.Identity = examineIdentity(ctx, identity, o.timeout)
	}
	server := proxy.New(settings)
	server.SetWorld(config.World)
	defer server.SetWorld(new(proxy.World)) // closes the connections

	var pods []doctor.Pod
	for _, e := range server.Endpoints() {
		last := len(pods) - 1
		switch {
		case !e.Engine:
		case last >= 0 && pods[last].Transport == e.Transport: // another rank of the same server
			pods[last].Ranks++
		default:
			pods = append(pods, doctor.Pod{Pool: e.Pool, Transport: e.Transport, Ranks: 1, Models: servedNames(config.World, e.Pool)})
		}
	}
	progress := newDoctorProgress(cmd, len(pods))
	report.Pods, report.Pools = doctor.Examine(ctx, pods, doctor.Options{
		MetricsPath: config.World.Scrape.Path, APIKey: os.Getenv("OPENAI_API_KEY"), NoRequests: o.noRequests, Timeout: o.timeout,
		Progress: progress.asks, Examined: progress.examined,
	})
	progress.end()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	problems := report.problems()
	report.OK = problems == 0 && len(pods) > 0
	if cli.JSON(cmd) {
		err = cli.WriteJSON(cmd.OutOrStdout(), report)
	} else {
		err = report.print(cmd.OutOrStdout())
	}
	switch {
	case err != nil:
		return err
	case len(pods) == 0:
		return errors.New("the configuration has no engine to ask: name some under pools[].endpoints, or by --endpoint")
	case problems == 1:
		return errors.New("1 problem found")
	case problems > 1:
		return fmt.Errorf("%d problems found", problems)
	}
	return nil
}

// load reads what is to be examined, and tells progress what is in the way.
func (o *doctorOptions) load(ctx context.Context, progress io.Writer) (*file.Config, error) {
	if !o.serve.kubernetes {
		_, config, err := o.serve.load()
		return config, err
	}
	// Nothing listens here; a configuration without a listener is refused.
	o.serve.listen = "127.0.0.1:0"
	_, config, err := o.serve.load()
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(progress, &slog.HandlerOptions{Level: slog.LevelWarn}))
	o.serve.noStatus = true
	objects, err := o.serve.cluster(config, log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the API server did not answer in a minute"))
	defer cancel()
	w := kube.Watcher{Client: objects.client, Log: log, Options: objects.options}
	var first *kube.Translation
	err = w.Run(ctx, func(t *kube.Translation) {
		if first == nil {
			first = t
		}
		cancel()
	})
	if first == nil {
		return nil, fmt.Errorf("--kubernetes: %w", errors.Join(err, context.Cause(ctx)))
	}
	config.World.Pools, config.World.Models = first.World.Pools, first.World.Models
	return config, nil
}

// servedNames are the names that the pool's engines are asked for; none: whatever
// clients ask for.
func servedNames(w *proxy.World, pool string) []string {
	var names []string
	for _, m := range w.Models {
		if m.Pool != pool {
			continue
		}
		if len(m.Targets) == 0 && m.Name != "" {
			names = append(names, m.Name)
		}
		for _, t := range m.Targets {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// examineIdentity says who we are in the mesh, and for how long.
func examineIdentity(ctx context.Context, s *mtls.Source, within time.Duration) *identityView {
	v := &identityView{Findings: []doctor.Finding{}}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := s.Wait(ctx); err != nil || !s.Ready() {
		v.Findings = append(v.Findings, doctor.Finding{Check: "certificate", Severity: doctor.Problem,
			What: fmt.Sprintf("no identity in the mesh: %v", cmp.Or(err, s.Err())),
			Cure: "see that what tls names can be read and reached from here: the files, the Workload API's socket, or istiod with a valid token"})
		return v
	}
	expiry := s.Expiry()
	v.SPIFFEID, v.Expires = s.ID().String(), &expiry
	if left := time.Until(expiry); left < expirySoon {
		v.Findings = append(v.Findings, doctor.Finding{Check: "certificate", Severity: doctor.Problem,
			What: fmt.Sprintf("the certificate expires in %v, and was not renewed", left.Round(time.Second)),
			Cure: "see why whoever issues it does not: cert-manager, SPIRE's agent, or istiod"})
	}
	return v
}

func (r *doctorReport) problems() int {
	n := 0
	count := func(f doctor.Finding) {
		if f.Severity == doctor.Problem {
			n++
		}
	}
	if r.Identity != nil {
		for _, f := range r.Identity.Findings {
			count(f)
		}
	}
	for _, d := range r.Pods {
		for _, f := range d.Findings {
			count(f)
		}
	}
	for _, f := range r.Pools {
		count(f.Finding)
	}
	return n
}

func (r *doctorReport) print(out io.Writer) error {
	var b strings.Builder
	if v := r.Identity; v != nil {
		if v.SPIFFEID != "" {
			fmt.Fprintf(&b, "in the mesh as %s, until %s\n", v.SPIFFEID, v.Expires.UTC().Format(time.RFC3339))
		}
		printFindings(&b, v.Findings)
		fmt.Fprintln(&b)
	}
	for _, d := range r.Pods {
		fmt.Fprintf(&b, "%s  pool %s  %s\n", d.Address, d.Pool, verdict(d))
		if facts := doctorFacts(d); facts != "" {
			fmt.Fprintf(&b, "  %s\n", facts)
		}
		printFindings(&b, d.Findings)
		fmt.Fprintln(&b)
	}
	for _, f := range r.Pools {
		fmt.Fprintf(&b, "pool %s\n", f.Pool)
		printFindings(&b, []doctor.Finding{f.Finding})
		fmt.Fprintln(&b)
	}
	if r.OK {
		fmt.Fprintln(&b, "no problem found")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func printFindings(b *strings.Builder, all []doctor.Finding) {
	for _, f := range all {
		fmt.Fprintf(b, "  %s: %s: %s\n    cure: %s\n", f.Severity, f.Check, f.What, f.Cure)
	}
}

func verdict(d *doctor.Diagnosis) string {
	switch {
	case !d.Reachable:
		return "unreachable"
	case d.Healthy():
		return "ok"
	}
	return "ill"
}

// doctorFacts says what was found out, in one line.
func doctorFacts(d *doctor.Diagnosis) string {
	var facts []string
	add := func(known bool, format string, args ...any) {
		if known {
			facts = append(facts, fmt.Sprintf(format, args...))
		}
	}
	add(d.Version != "", "version %s", d.Version)
	add(len(d.Models) > 0, "serves %s", strings.Join(d.Models, ", "))
	add(d.CacheTokens > 0, "%d tokens of KV cache in blocks of %d", d.CacheTokens, d.BlockSize)
	add(d.SecondsPerToken > 0, "%.0f µs a prompt token", 1e6*d.SecondsPerToken)
	add(d.CachedOnRepeat != nil, "a repeated prompt of %d tokens had %d cached", d.PromptTokens, deref(d.CachedOnRepeat))
	return strings.Join(facts, "; ")
}

func deref(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}

// doctorProgress shows what the doctor does: a bar on a terminal, a line for each
// pod elsewhere, nothing beside JSON.
type doctorProgress struct {
	mu    sync.Mutex // guards what follows
	out   io.Writer  // of lines; nil: none
	bar   *progressbar.ProgressBar
	done  int
	total int
}

func newDoctorProgress(cmd *cobra.Command, pods int) *doctorProgress {
	out := cmd.ErrOrStderr()
	shown := !cli.JSON(cmd) && cli.IsTerminal(out)
	p := &doctorProgress{total: pods, bar: progressbar.NewOptions(pods, progressbar.OptionSetWriter(out), progressbar.OptionSetWidth(20),
		progressbar.OptionSetVisibility(shown), progressbar.OptionSetPredictTime(false), progressbar.OptionClearOnFinish())}
	if !shown && !cli.JSON(cmd) {
		p.out = out
	}
	return p
}

func (p *doctorProgress) asks(pod, what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bar.Describe(pod + ": " + what)
}

func (p *doctorProgress) examined(d *doctor.Diagnosis) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	p.bar.Set(p.done)
	if p.out != nil {
		fmt.Fprintf(p.out, "examined %s (%d of %d)\n", d.Address, p.done, p.total)
	}
}

func (p *doctorProgress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bar.Finish()
}
