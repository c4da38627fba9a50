package extauthz

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fairway-proxy/fairway/proxy/message"
)

var errNotHTTP = errors.New("a provider that is asked by HTTP cannot be asked about what is not HTTP")

type grpcClient struct {
	provider *Provider
	conn     *grpc.ClientConn
	err      error // why there is none
}

func newGRPCClient(p *Provider) *grpcClient {
	conn, err := grpc.NewClient("dns:///"+p.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		// One that comes back is to be asked again soon.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}, MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	)
	return &grpcClient{p, conn, err}
}

func (c *grpcClient) close() {
	if c.conn != nil {
		c.conn.Close()
	}
}

func (c *grpcClient) check(ctx context.Context, r *Request) (*Answer, error) {
	if c.err != nil {
		return nil, c.err
	}
	said, err := authv3.NewAuthorizationClient(c.conn).Check(ctx, c.request(r))
	if err != nil {
		return nil, err
	}
	if codes.Code(said.GetStatus().GetCode()) == codes.OK {
		return allowed(said), nil
	}
	return denied(said), nil
}

// request is what the provider is told: envoy's ext_authz filter is the model
// (source/extensions/filters/common/ext_authz/check_request_utils.cc).
func (c *grpcClient) request(r *Request) *authv3.CheckRequest {
	a := &authv3.AttributeContext{
		Source:      peer(r.Source),
		Destination: peer(r.Destination),
		Request:     &authv3.AttributeContext_Request{Time: timestamppb.Now()},
	}
	a.Source.Principal = r.Principal
	if r.Head == nil {
		return &authv3.CheckRequest{Attributes: a}
	}
	h := &authv3.AttributeContext_HttpRequest{
		Id: r.ID, Method: string(r.Head.Method), Scheme: "http",
		Path: strings.ToValidUTF8(string(r.Head.Target), "�"), Host: strings.ToValidUTF8(string(r.Head.Authority), "�"),
		Size: r.Head.ContentLength, Headers: make(map[string]string, len(r.Head.Fields)+4),
	}
	for _, f := range r.Head.Fields {
		name := strings.ToLower(string(f.Name))
		value := strings.ToValidUTF8(string(f.Value), "�")
		if before, twice := h.Headers[name]; twice {
			value = before + "," + value
		}
		h.Headers[name] = value
	}
	for name, value := range map[string]string{":method": h.Method, ":path": h.Path, ":authority": h.Host, ":scheme": h.Scheme} {
		h.Headers[name] = value
	}
	if c.provider.Body > 0 {
		h.Headers[partialField] = fmt.Sprint(r.Partial)
		if c.provider.PackAsBytes {
			h.RawBody = r.Body
		} else {
			h.Body = strings.ToValidUTF8(string(r.Body), "�")
		}
	}
	a.Request.Http = h
	return &authv3.CheckRequest{Attributes: a}
}

// partialField tells a provider whether it sees only the start of a body.
const partialField = "x-envoy-auth-partial-body"

func peer(a netip.AddrPort) *authv3.AttributeContext_Peer {
	return &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}}
}

// allowed reads an allowance. One that cannot be done as it is wanted lets nothing pass.
func allowed(said *authv3.CheckResponse) *Answer {
	a := &Answer{Allowed: true}
	if said.GetDeniedResponse() != nil {
		return &Answer{Err: errors.New("it allows, and says how it denies")}
	}
	ok := said.GetOkResponse()
	if len(ok.GetQueryParametersToSet())+len(ok.GetQueryParametersToRemove()) > 0 {
		return &Answer{Err: errors.New("it wants the query changed, which is not done here")}
	}
	for _, h := range ok.GetHeaders() {
		f, appended, err := headerOption(h, false)
		switch {
		case err != nil:
			return &Answer{Err: err}
		case appended:
			a.Append = append(a.Append, f)
		default:
			a.Set = append(a.Set, f)
		}
	}
	for _, h := range ok.GetResponseHeadersToAdd() {
		f, appended, err := headerOption(h, true)
		switch {
		case err != nil:
			return &Answer{Err: err}
		case appended:
			a.AppendToClient = append(a.AppendToClient, f)
		default:
			a.SetToClient = append(a.SetToClient, f)
		}
	}
	for _, name := range ok.GetHeadersToRemove() {
		a.Remove = append(a.Remove, strings.ToLower(name))
	}
	return a
}

// headerOption reads a field, and whether it is to stand beside those of its name: if that
// is not said, then byDefault.
func headerOption(h *corev3.HeaderValueOption, byDefault bool) (f message.Field, appended bool, err error) {
	f, ok := headerField(h)
	if !ok {
		return f, false, fmt.Errorf("it sets %q, which cannot stand in a head", h.GetHeader().GetKey())
	}
	switch h.GetAppendAction() {
	case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD: // the zero value, beside the older field
		//lint:ignore SA1019 authorizers still say it so
		if said := h.GetAppend(); said != nil {
			return f, said.GetValue(), nil
		}
		return f, byDefault, nil
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		return f, false, nil
	}
	return f, false, fmt.Errorf("it sets %s in a way that is not known here (%s)", f.Name, h.GetAppendAction())
}

func headerField(h *corev3.HeaderValueOption) (f message.Field, ok bool) {
	if raw := h.GetHeader().GetRawValue(); len(raw) > 0 {
		return field(h.GetHeader().GetKey(), string(raw))
	}
	return field(h.GetHeader().GetKey(), h.GetHeader().GetValue())
}

// denied reads a denial, which stands whatever else is said: what cannot be answered
// is left out, and a status that cannot be is 403.
func denied(said *authv3.CheckResponse) *Answer {
	d := said.GetDeniedResponse()
	a := &Answer{Status: 403, Body: []byte(d.GetBody())}
	if code := int(d.GetStatus().GetCode()); code >= 200 && code <= 599 {
		a.Status = code
	}
	for _, h := range d.GetHeaders() {
		if f, ok := headerField(h); ok {
			a.Fields = append(a.Fields, f)
		}
	}
	return a
}
