package extauthz

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

type httpClient struct {
	provider  *Provider
	transport *http.Transport
}

func newHTTPClient(p *Provider) *httpClient {
	return &httpClient{p, &http.Transport{MaxIdleConnsPerHost: 256, IdleConnTimeout: time.Minute, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10}}
}

func (c *httpClient) close() { c.transport.CloseIdleConnections() }

func (c *httpClient) check(ctx context.Context, r *Request) (*Answer, error) {
	q, err := c.request(ctx, r)
	if err != nil { // the client's doing
		return &Answer{Err: err}, nil
	}
	resp, err := c.transport.RoundTrip(q) // a Client would follow redirections, or fail on them
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("its answer is larger than %d bytes", maxAnswer)
	}
	switch {
	case resp.StatusCode >= 500:
		return nil, fmt.Errorf("it answers %s", resp.Status)
	case err != nil || resp.StatusCode < 200:
		return &Answer{Err: cmp.Or(err, fmt.Errorf("it answers %s", resp.Status))}, nil
	case resp.StatusCode == http.StatusOK:
		return c.allowed(resp), nil
	}
	return c.denied(resp, body), nil
}

// request is what the provider is asked: by the request's own method, path and host.
func (c *httpClient) request(ctx context.Context, r *Request) (*http.Request, error) {
	p := c.provider
	target, err := url.ParseRequestURI(p.PathPrefix + string(r.Head.Target))
	if err != nil {
		return nil, fmt.Errorf("it cannot be asked about this path: %w", err)
	}
	target.Scheme, target.Host = "http", p.Address
	var body io.Reader
	if len(r.Body) > 0 {
		body = bytes.NewReader(r.Body)
	}
	q, err := http.NewRequestWithContext(ctx, string(r.Head.Method), target.String(), body)
	if err != nil {
		return nil, err
	}
	q.Host = string(r.Head.Authority)
	q.Header.Set("User-Agent", "")
	for _, f := range r.Head.Fields {
		name := strings.ToLower(string(f.Name))
		if !ofConnection([]byte(name)) && (name == "authorization" || matches(p.IncludeHeaders, name)) {
			if name == "user-agent" {
				q.Header.Del(name) // that is ours
			}
			q.Header.Add(name, string(f.Value))
		}
	}
	for name, value := range p.AddHeaders {
		q.Header.Set(name, value)
	}
	if p.Body > 0 {
		q.Header.Set(partialField, fmt.Sprint(r.Partial))
	}
	return q, nil
}

func (c *httpClient) allowed(resp *http.Response) *Answer {
	a := &Answer{Allowed: true}
	for name, values := range resp.Header {
		name = strings.ToLower(name)
		for i, value := range values {
			f, ok := field(name, value)
			if !ok {
				continue
			}
			if matches(c.provider.ToUpstreamOnAllow, name) {
				if i == 0 {
					a.Set = append(a.Set, f)
				} else {
					a.Append = append(a.Append, f)
				}
			}
			if matches(c.provider.ToClientOnAllow, name) {
				if i == 0 && name != "set-cookie" {
					a.SetToClient = append(a.SetToClient, f)
				} else {
					a.AppendToClient = append(a.AppendToClient, f)
				}
			}
		}
	}
	for _, list := range resp.Header.Values("x-envoy-auth-headers-to-remove") {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.ToLower(strings.TrimSpace(name)); name != "" {
				a.Remove = append(a.Remove, name)
			}
		}
	}
	return a
}

func (c *httpClient) denied(resp *http.Response, body []byte) *Answer {
	a := &Answer{Status: resp.StatusCode, Body: body}
	for name, values := range resp.Header {
		name = strings.ToLower(name)
		if len(c.provider.ToClientOnDeny) > 0 && name != "www-authenticate" && name != "location" && name != "content-type" && !matches(c.provider.ToClientOnDeny, name) {
			continue
		}
		for _, value := range values {
			if f, ok := field(name, value); ok && name != "date" {
				a.Fields = append(a.Fields, f)
			}
		}
	}
	return a
}
