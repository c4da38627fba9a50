package main

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// logs are where a proxy says what it has to say.
type logs struct {
	*slog.Logger
	level  *slog.LevelVar // of Logger; nil: it cannot be changed
	access *account.Log   // of requests; nil: there is none
}

// logs makes the command's logs as the configuration says, on standard error.
func (o *serveOptions) logs(cmd *cobra.Command, c *file.Config) (logs, error) {
	l := logs{level: new(slog.LevelVar)}
	level, err := parseLevel(c.Log.Level)
	if err != nil {
		return l, cli.Misuse(fmt.Errorf("--log-level %w", err))
	}
	l.level.Set(level)
	w := cmd.ErrOrStderr()
	l.Logger = newLog(w, cli.JSON(cmd), l.level)
	format := file.AccessText
	if cli.JSON(cmd) {
		format = file.AccessJSON
	}
	switch cmp.Or(c.Log.Access, format) {
	case file.AccessText:
		l.access = account.NewLog(w, account.Text)
	case file.AccessJSON:
		l.access = account.NewLog(w, account.JSON)
	}
	return l, nil
}

// parseLevel reads debug, info, warn or error; empty is info.
func parseLevel(word string) (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cmp.Or(word, "info"))); err != nil {
		return level, fmt.Errorf("%s: want debug, info, warn or error", word)
	}
	return level, nil
}

func newLog(w io.Writer, inJSON bool, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if inJSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
