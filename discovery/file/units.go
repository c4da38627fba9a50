package file

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-proxy/fairway/proxy"
)

// parseDuration reads Go's syntax for durations, in which a plain 0 needs no
// unit.
func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err == nil {
		return d, nil
	}
	if _, numErr := strconv.ParseFloat(s, 64); numErr == nil {
		return 0, fmt.Errorf("%s has no unit: want a duration such as 100ms, 2s or 5m", show(s))
	}
	return 0, fmt.Errorf("%s is not a duration: want one such as 100ms, 2s or 5m", show(s))
}

// The units of sizes, largest first.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"TB", 1e12},
	{"GiB", 1 << 30}, {"GB", 1e9},
	{"MiB", 1 << 20}, {"MB", 1e6},
	{"KiB", 1 << 10}, {"KB", 1e3},
}

// parseSize reads a number of bytes, plain or with a unit: 64KiB is 65536,
// 64KB is 64000.
func parseSize(s string) (int64, error) {
	digits, unit := s, int64(1)
	for _, u := range sizeUnits {
		if before, ok := strings.CutSuffix(s, u.name); ok {
			digits, unit = strings.TrimSuffix(before, " "), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	switch {
	case err != nil || strconv.FormatInt(n, 10) != digits: // +1, 010 (octal in YAML)
		return 0, fmt.Errorf("%s is not a size: want bytes such as 65536, 64KiB or 1GiB", show(s))
	case n < 0:
		return 0, fmt.Errorf("%s is negative: want bytes such as 65536, 64KiB or 1GiB", show(s))
	case n > math.MaxInt64/unit:
		return 0, fmt.Errorf("%s is too large", show(s))
	}
	return n * unit, nil
}

// formatSize writes bytes with the largest binary unit that divides them.
func formatSize(bytes int64) string {
	for _, u := range sizeUnits {
		if u.name[1] == 'i' && bytes >= u.bytes && bytes%u.bytes == 0 {
			return strconv.FormatInt(bytes/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(bytes, 10)
}

const endpointForm = "http://host:port"

// ports are those that an endpoint's URL leaves out; hbone leaves out none.
var ports = map[proxy.Scheme]string{proxy.SchemeHTTP: "80", proxy.SchemeH2C: "80", proxy.SchemeHTTPS: "443", proxy.SchemeHBONE: ""}

// ParseEndpoint turns an endpoint's URL, such as http://host:port, into what it says
// of the endpoint: its address, host:port, and its scheme. The port of http and h2c is
// 80 if left out, that of https 443, an IPv6 address stands in brackets, and no path
// may follow but "/". One endpoint has one address however it is spelt: letters become
// small, IP addresses canonical.
func ParseEndpoint(raw string) (proxy.Endpoint, error) {
	fail := func(format string, args ...any) (proxy.Endpoint, error) {
		return proxy.Endpoint{}, fmt.Errorf(format, args...)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return fail("%s is not an endpoint URL: want %s", show(raw), endpointForm)
	}
	scheme := proxy.Scheme(u.Scheme)
	port, known := ports[scheme]
	if !known {
		return fail("%s is not an endpoint URL: want %s, or h2c, https or hbone instead of http", show(raw), endpointForm)
	}
	if u.User != nil {
		// Not shown: it may hold a password.
		return fail("an endpoint URL with a user name: want %s", endpointForm)
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || strings.Contains(raw, "#") {
		return fail("%s: an endpoint URL ends after the port: want %s", show(raw), endpointForm)
	}
	host := strings.ToLower(u.Hostname())
	if addr, err := netip.ParseAddr(host); err == nil {
		host = addr.String()
	}
	if u.Port() != "" {
		port = u.Port()
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		port = strconv.FormatUint(n, 10) // 08000
	}
	address := net.JoinHostPort(host, port)
	if err := checkAddress(address); err != nil {
		return fail("%s is not an endpoint URL: %w", show(raw), err)
	}
	if scheme == proxy.SchemeHTTP {
		scheme = "" // as it is without a URL
	}
	return proxy.Endpoint{Address: address, Scheme: scheme}, nil
}

// checkAddress says what is wrong with an address to be dialled.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s: want host:port", show(address))
	}
	if err := checkPort(port, 1); err != nil {
		return err
	}
	return checkHost(host)
}

// checkListen says what is wrong with an address to listen on. The host may
// be left out, the port may be 0 for any that is free.
func checkListen(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf(`%s is not an address: want host:port, or ":port" for all interfaces`, show(address))
	}
	if err := checkPort(port, 0); err != nil {
		return err
	}
	if host == "" {
		return nil
	}
	return checkHost(host)
}

func checkPort(port string, least uint64) error {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n < least {
		return fmt.Errorf("port %s: want a number from %d to 65535", show(port), least)
	}
	return nil
}

// checkHost takes an IP address or a name that could be one in DNS, with
// underscores (docker-compose makes such names).
func checkHost(host string) error {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if host == "" {
		return fmt.Errorf("no host: want host:port")
	}
	bad := func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_')
	}
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.ContainsFunc(l, bad) {
			return fmt.Errorf("host %s: want an IP address or a DNS name", show(host))
		}
	}
	// A name whose last label is a number is a mistyped IPv4 address.
	if _, err := strconv.Atoi(labels[len(labels)-1]); err == nil || len(host) > 253 {
		return fmt.Errorf("host %s: want an IP address or a DNS name", show(host))
	}
	return nil
}
