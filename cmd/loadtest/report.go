package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/bench/report"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

func newReport() *cobra.Command {
	var page string
	cmd := &cobra.Command{
		Use:   "report FILE...",
		Short: "Make a page with plots, and a table, of what run has written",
		Long: "report reads the files that run --out has written, puts a page with plots into --html, and prints a table in Markdown.\n" +
			"Runs with the same --label are one line in the plots; several at one rate give it a band from the lowest to the highest.",
		Example: "  loadtest report fairway.jsonl other.jsonl --html report.html > report.md",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Misuse(errors.New("which files? Name those that loadtest run --out has written"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return makeReport(cmd, args, page) },
	}
	cmd.Flags().StringVar(&page, "html", "report.html", "file for the page; empty: none")
	return cmd
}

func makeReport(cmd *cobra.Command, files []string, page string) error {
	var runs []report.Run
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		more, err := report.Read(name, f)
		f.Close()
		if err != nil {
			return err
		}
		runs = append(runs, more...)
	}
	r := report.New(runs)
	if page != "" {
		f, err := os.Create(page)
		if err != nil {
			return fmt.Errorf("--html: %w", err)
		}
		if err := errors.Join(r.HTML(f), f.Close()); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "the page is %s\n", page)
	}
	if cli.JSON(cmd) {
		return cli.WriteJSON(cmd.OutOrStdout(), r)
	}
	return r.Markdown(cmd.OutOrStdout())
}
