// Command mockvllm is a vLLM server without a model: the same wire, the same metrics page, the same scheduling and the same pace.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/bench/engine"
	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

// version is set by the linker (make build).
var version = ""

func main() { cli.Main(newCommand()) }

// maxRanks bounds the engines of one server.
const maxRanks = 256

// options are the flags.
type options struct {
	listen    string
	profile   string
	blocks    int
	maxLoras  int
	loadTime  time.Duration
	drain     time.Duration
	noCaching bool
	cfg       mock.Config
}

func newCommand() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "mockvllm",
		Short: "A vLLM server without a model",
		Long: "mockvllm speaks vLLM's API and shows its metrics page. What it answers is made up; when it answers follows vLLM's\n" +
			"scheduler and prefix cache, at the pace of a model and hardware of your choice.\n\nProfiles:\n" + profiles(),
		Example: "  mockvllm --listen :8000 --model llama --lora support --lora sales\n  mockvllm --listen :8001 --profile tiny-cpu --speed 10",
		Args:    cli.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return serve(cmd, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", ":8000", "address to listen on; port 0 chooses one")
	f.StringVar(&o.cfg.Model, "model", "mock", "served model name")
	f.StringArrayVar(&o.cfg.Loras, "lora", nil, "name of a LoRA adapter, which is a model too (repeatable)")
	f.BoolVar(&o.cfg.LoraUpdates, "allow-runtime-lora-updating", false, "serve /v1/load_lora_adapter and /v1/unload_lora_adapter")
	f.StringVar(&o.cfg.LoraRoot, "lora-root", "", "what the paths of adapters that can be loaded begin with; others are not found")
	f.DurationVar(&o.loadTime, "lora-load-time", 0, "how long loading an adapter takes, at speed 1 (default the profile's)")
	f.StringVar(&o.profile, "profile", engine.Profiles[0].Name, "model and hardware whose pace to keep")
	f.Float64Var(&o.cfg.Speed, "speed", 1, "how many times faster than real the engine runs; steps below 1 ms come in bursts")
	f.IntVar(&o.cfg.DataParallel, "data-parallel-size", 1, "engines behind the one address, which X-data-parallel-rank tells apart")
	f.DurationVar(&o.cfg.TransferToken, "transfer-token", 0, "what a token's KV takes from the server that x-prefiller-host-port names, at speed 1 (default 131,072 bytes at 200 Gbit/s)")
	f.Uint64Var(&o.cfg.Seed, "seed", 0, "seed of the answers: the same request gets the same answer")
	f.IntVar(&o.cfg.MaxModelLen, "max-model-len", 0, "longest prompt and answer together, in tokens (default the profile's)")
	f.IntVar(&o.blocks, "num-gpu-blocks", 0, "KV blocks of 16 tokens (default the profile's)")
	f.IntVar(&o.maxLoras, "max-loras", 1, "adapters that may run at once")
	f.IntVar(&o.cfg.MaxQueued, "max-num-queued-reqs", 0, "answer 503 when more requests wait or run (default no limit)")
	f.StringVar(&o.cfg.APIKey, "api-key", "", "demand this key under /v1")
	f.BoolVar(&o.cfg.RequestIDHeaders, "enable-request-id-headers", false, "answer with X-Request-Id")
	f.BoolVar(&o.cfg.ForceUsage, "enable-force-include-usage", false, "usage on every event of every stream")
	f.BoolVar(&o.cfg.HideCachedTokens, "no-prompt-tokens-details", false, "leave cached tokens out of the usage")
	f.BoolVar(&o.noCaching, "no-enable-prefix-caching", false, "find no prompt in the cache")
	f.BoolVar(&o.cfg.NoEngineMetrics, "disable-log-stats", false, "show no metrics of the engine")
	f.DurationVar(&o.cfg.KeepAlive, "timeout-keep-alive", 5*time.Second, "how long an idle connection is kept after a request")
	f.DurationVar(&o.cfg.ClockSkew, "clock-skew", 0, "by how much the clock is wrong")
	f.DurationVar(&o.drain, "drain", 10*time.Second, "on SIGTERM, how long to wait for answers to be written")
	cmd.PersistentFlags().Bool("json", false, "say what there is to say as JSON")
	cmd.AddCommand(cli.NewVersion(version))
	return cmd
}

func profiles() string {
	var b strings.Builder
	for _, p := range engine.Profiles {
		fmt.Fprintf(&b, "  %-18s %s\n", p.Name, p.About)
	}
	return b.String()
}

// config completes what the flags say, or says what is wrong with them.
func (o *options) config() (mock.Config, error) {
	p, err := engine.ProfileNamed(o.profile)
	if err != nil {
		return mock.Config{}, cli.Misuse(fmt.Errorf("--profile: %w", err))
	}
	if o.blocks != 0 {
		p.Engine.Blocks = o.blocks
	}
	p.Engine.MaxLoras = o.maxLoras
	p.Engine.NoPrefixCaching = o.noCaching
	if o.loadTime != 0 {
		p.Engine.Cost.AdapterLoad = o.loadTime
	}
	switch {
	case o.cfg.Speed <= 0:
		err = fmt.Errorf("--speed %v: must be above 0", o.cfg.Speed)
	case o.cfg.DataParallel < 1 || o.cfg.DataParallel > maxRanks:
		err = fmt.Errorf("--data-parallel-size %d: must be from 1 to %d", o.cfg.DataParallel, maxRanks)
	case o.cfg.TransferToken < 0:
		err = fmt.Errorf("--transfer-token %v: must not be negative", o.cfg.TransferToken)
	case p.Engine.Blocks < 2:
		err = fmt.Errorf("--num-gpu-blocks %d: must be at least 2", o.blocks)
	case o.loadTime < 0:
		err = fmt.Errorf("--lora-load-time %v: must not be negative", o.loadTime)
	case o.maxLoras < 1:
		err = fmt.Errorf("--max-loras %d: must be at least 1", o.maxLoras)
	case o.cfg.MaxModelLen < 0:
		err = fmt.Errorf("--max-model-len %d: must not be negative", o.cfg.MaxModelLen)
	case o.cfg.MaxModelLen > (p.Engine.Blocks-1)*engine.BlockSize:
		err = fmt.Errorf("--max-model-len %d: does not fit %d KV blocks of %d tokens", o.cfg.MaxModelLen, p.Engine.Blocks, engine.BlockSize)
	}
	cfg := o.cfg
	cfg.Profile = p
	return cfg, cli.Misuse(err)
}

// serve runs the server until ctx is done.
func serve(cmd *cobra.Command, o *options) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	s := mock.New(cfg)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	if cli.JSON(cmd) {
		json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{
			"listen": ln.Addr().String(), "model": cfg.Model, "loras": append([]string{}, cfg.Loras...), "profile": cfg.Profile.Name, "speed": cfg.Speed,
		})
	} else {
		fmt.Fprintf(cmd.OutOrStdout(), "mockvllm: serving %s on %s as %s at %gx\n", cfg.Model, ln.Addr(), cfg.Profile.Name, cfg.Speed)
	}
	select {
	case err := <-served:
		s.Close()
		return err
	case <-cmd.Context().Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.drain)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		return fmt.Errorf("some answers were cut off: not written within %v", o.drain)
	}
	return nil
}
