package proxy

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extauthz"
	"github.com/fairway-proxy/fairway/proxy/route"
)

// World is everything that is declared about what the proxy serves: pools, the
// models users name, time-outs and limits. It is plain data, compiled by
// package discovery from a file or from Kubernetes objects, and never changed
// after it was given to Server.SetWorld. What is learned while serving (caches,
// loads, speeds, ejections) lives on behind it, keyed by pool, address and UID,
// for as long as a World still names it.
type World struct {
	Pools  []Pool
	Models []Model
	// Objectives are what a request may ask for by name to be ranked by.
	Objectives []Objective
	// SLOs are what requests should get that do not say it themselves. The first that is
	// for a pool counts.
	SLOs []SLO
	// RaisePriority says who may ask for more than its model has; empty: RaiseInMesh.
	RaisePriority RaisePriority
	// Routes share out the requests that come by the plain listener among the
	// pools, which their backends name; a request that none of them matches is
	// answered with 404. Within the pool it is sent to, those of its Models say
	// what may be asked for. Without Routes, the Models alone say which pool a
	// request is for. They come in the order that route.Compile wants.
	Routes []route.Route
	// Services are what tunnels of the mesh may lead to, besides what WaypointFor
	// says. Their ports have routes of their own.
	Services []Service
	// WaypointFor says for whose addresses tunnels are taken; empty: ForServices.
	WaypointFor WaypointFor
	// Workloads are the addresses of endpoints that WaypointFor may mean; nil: all.
	Workloads []netip.Addr

	// Queue is what becomes of requests that no endpoint can start soon.
	Queue Queue
	// Budgets are how many tokens a minute may be had; the first that is about a
	// request counts.
	Budgets []queue.Limit

	// Access is who may do what, whatever it is for.
	Access authz.Config
	// Gateway is who may do what, besides, with what is for no Service: what comes by
	// the plain listener, or is for a pod.
	Gateway authz.Scope

	// Authorizers are whom CUSTOM policies may have asked. A policy that names none of them
	// denies what it matches.
	Authorizers []extauthz.Provider

	// Pickers says whether pools that have a Picker get it; empty: HonourPickers.
	Pickers PickerChoice

	Timeouts Timeouts
	Limits   Limits
	Scrape   Scrape

	// RemotePrefill is from how many uncached tokens on a prompt may be computed by another
	// endpoint than the one that the request goes to; zero: DefaultRemotePrefill.
	RemotePrefill int

	// Usage says whether the proxy may ask engines for token counts.
	Usage UsageMode
	// CacheSalt says whom engines keep what they have computed apart for.
	CacheSalt CacheSalt
	// ModelNames says how answers call a model that was served under another name.
	ModelNames ModelNames
	// Explain says who gets to see where a request went.
	Explain ExplainMode
	// Shadow is a second policy that is asked too where each request should go, and
	// sends nothing; empty: ShadowNone.
	Shadow ShadowPolicy
}

// Pool is a set of endpoints that serve the same models, or the same whatever it is.
type Pool struct {
	Name      string
	Endpoints []Endpoint
	// Plain: its endpoints are no engines. Each request goes to the one with the fewest
	// in flight, does not wait for its turn, and is passed on as it is, and its answer
	// too; its body is read only for policies about models. They are sent nothing else.
	Plain bool
	// Picker is an endpoint picker of the pool's own, which is asked where each of
	// its requests goes; nil: the embedded one picks.
	Picker *Picker
}

// Picker is a process that is asked by the Endpoint Picker Protocol, as an
// InferencePool's endpointPickerRef names it.
type Picker struct {
	// Address is "host:port". Of a name that has several addresses, each is a
	// replica.
	Address string
	// FailureMode says what becomes of a request that it does not answer; empty:
	// FailClose.
	FailureMode FailureMode
	// Timeout bounds the whole asking for one request; zero: DefaultPickerTimeout.
	Timeout time.Duration
	// Body says how a request's body is sent there; empty: BodyFullDuplex.
	Body PickerBody
	// Answers says how much of an answer is reported there; empty: AnswersHead.
	Answers PickerAnswers
	// Plain has it asked without TLS.
	Plain bool
	// Roots is whom its certificate has to be vouched for by, as PEM; empty: it is
	// not verified, for pickers make theirs up unless they are given one.
	Roots string
	// ServerName is what its certificate is verified for; empty: the host of Address.
	ServerName string
}

// FailureMode is what becomes of a request that its endpoint picker does not
// answer, in the words of InferencePool.
type FailureMode string

const (
	FailClose FailureMode = "FailClose" // it is refused with 503
	FailOpen  FailureMode = "FailOpen"  // the embedded picker picks
)

// PickerBody is how an endpoint picker gets a request's body, in the words of
// Envoy's ext_proc filter (ProcessingMode.BodySendMode).
type PickerBody string

const (
	BodyFullDuplex PickerBody = "FULL_DUPLEX_STREAMED" // in pieces, right behind the head
	BodyBuffered   PickerBody = "BUFFERED"             // in one piece, after the head was answered
)

// PickerAnswers is how much of an answer an endpoint picker is told.
type PickerAnswers string

const (
	AnswersNone PickerAnswers = "none"
	// AnswersHead is its head, with the endpoint that served, and when it ended; its
	// body too if the picker asks for that (mode_override).
	AnswersHead PickerAnswers = "head"
	AnswersBody PickerAnswers = "body"
)

// PickerChoice says whether the Pickers of pools are asked.
type PickerChoice string

const (
	HonourPickers  PickerChoice = "honour"
	EmbeddedPicker PickerChoice = "embedded" // the embedded one picks for all pools
)

// Endpoint is one engine's address, and how it is reached.
type Endpoint struct {
	// Address is "host:port", as it is dialled and shown. A host name is
	// resolved at each dial. With HBONE it is a pod's IP address.
	Address string
	// UID tells successive pods on one address apart; empty where nobody knows.
	UID string
	// Scheme says how; empty: SchemeHTTP.
	Scheme Scheme
	// Identity is whom an HBONE tunnel has to lead to.
	Identity spiffeid.ID
	// Roots is whom HTTPS trusts, as PEM; empty: what the system trusts.
	Roots string
	// Ranks is how many engines share the address, each an endpoint of its own: vLLM's
	// data-parallel ranks behind one API server, which X-data-parallel-rank tells apart
	// and the label engine of its metrics. 0 and 1: one, of which nothing is said.
	Ranks int
	// Role is what it does of a request, in the words of llm-d; empty: RoleDecode.
	Role Role
	// Cost is what a second of it costs, in relation to the others of the pool, up to
	// MaxCost; 0: 1.
	Cost float64
}

// MaxCost is the most that an endpoint may cost.
const MaxCost = 1e6

// way is the endpoint without what does not matter to how it is reached.
func (e Endpoint) way() Endpoint {
	e.Ranks, e.Role, e.Cost = 0, "", 0
	return e
}

// Role is what an endpoint does of a request (the label llm-d.ai/role of its pod).
type Role string

const (
	RoleDecode Role = "decode" // all of it, unless another endpoint computes the prompt
	RoleBoth   Role = "both"   // likewise, and it computes prompts for others
	// RolePrefill computes prompts for others, and nothing else is ever sent there.
	RolePrefill Role = "prefill"
)

// MaxRanks bounds the engines of one address.
const MaxRanks = 256

// Scheme is how an endpoint is reached, as in its URL.
type Scheme string

const (
	SchemeHTTP  Scheme = "http"  // over TCP
	SchemeH2C   Scheme = "h2c"   // likewise, in HTTP/2 with prior knowledge
	SchemeHTTPS Scheme = "https" // over TLS
	SchemeHBONE Scheme = "hbone" // through a tunnel of the mesh
)

// Service is what the mesh knows of a Kubernetes Service that this waypoint is
// for.
type Service struct {
	// Host is its full name, such as llama.default.svc.cluster.local.
	Host string
	// VIPs are its virtual addresses.
	VIPs  []netip.Addr
	Ports []ServicePort
	// Access is who may do what with it, besides what is in World.Access.
	Access authz.Scope
}

// ServicePort is where connections to one port of a Service go.
type ServicePort struct {
	Port     uint16
	Protocol PortProtocol // empty: PortAuto
	// Pool is where. With HTTP it may be empty: then the models say.
	Pool string
	// Routes share out its HTTP requests in place of Pool, as World.Routes do those
	// of the plain listener.
	Routes []route.Route
}

// PortProtocol is what is spoken at a port.
type PortProtocol string

const (
	// PortHTTP is HTTP of whatever version the client speaks; endpoints are asked as
	// their Scheme says.
	PortHTTP PortProtocol = "http"
	// PortH2C, or PortGRPC, is HTTP whose endpoints are asked in HTTP/2.
	PortH2C  PortProtocol = "h2c"
	PortGRPC PortProtocol = "grpc"
	// PortTCP is passed on unread.
	PortTCP PortProtocol = "tcp"
	// PortAuto is HTTP if it begins like it, and otherwise passed on unread.
	PortAuto PortProtocol = "auto"
)

// WaypointFor says whose addresses a waypoint answers for, in the words of Istio's
// label istio.io/waypoint-for.
type WaypointFor string

const (
	ForServices  WaypointFor = "service"
	ForWorkloads WaypointFor = "workload" // the addresses of endpoints themselves
	ForAll       WaypointFor = "all"
	ForNone      WaypointFor = "none"
)

// Model is a name users ask for. Two pools may have models of one name: then it
// takes a route to reach the second.
type Model struct {
	// Name is empty for all names that no other Model of the pool has: they are
	// passed on as they came, or as one of Targets.
	Name        string
	Pool        string
	Criticality Criticality
	// Targets are the names the engines serve it under; every turn of a conversation
	// gets the same. None: its own name.
	Targets []Target
}

// Target is one of the names behind a Model and its share of the traffic:
// Weight over the sum of weights.
type Target struct {
	Name   string
	Weight int
}

// Criticality ranks models when there is not enough for all
// (InferenceModel, inference.networking.x-k8s.io/v1alpha2).
type Criticality string

// The criticalities of an InferenceModel. Empty counts as Standard.
const (
	Critical  Criticality = "Critical"
	Standard  Criticality = "Standard"
	Sheddable Criticality = "Sheddable"
)

// Priority is the criticality on the scale of an InferenceObjective.
func (c Criticality) Priority() int {
	switch c {
	case Critical:
		return queue.Critical
	case Sheddable:
		return queue.Sheddable
	}
	return queue.Standard
}

// Queue bounds how much waits before each pool, and for how long. The zero value of
// each is the default that package queue has.
type Queue struct {
	// Off has every request sent at once.
	Off bool
	// Requests and Bytes are what may wait: how many, and the memory of their bodies.
	Requests int
	Bytes    int64
	// Wait is the longest wait, SheddableWait that of priorities below 0.
	Wait, SheddableWait time.Duration
	// LowerShare is the share of tokens, 0 to 1, that lower priorities get while
	// higher ones wait.
	LowerShare float64
}

// Objective is a priority that has a name in one pool: an InferenceObjective
// (inference.networking.x-k8s.io/v1alpha2). Requests name it in the header
// x-gateway-inference-objective, or x-llm-d-inference-objective.
type Objective struct {
	Name string
	Pool string
	// Priority ranks: the higher one first. Below 0 requests are sheddable: they
	// are refused rather than kept waiting.
	Priority int
}

// SLO is what a pool's requests should get (service level objective): the endpoints that
// are predicted to give it are preferred, the cheapest of them first. Requests ask for it
// themselves in the headers x-slo-ttft-ms and x-slo-tpot-ms.
type SLO struct {
	Pool string // empty: every pool
	// TTFT is the time from a request's head to its first token; 0: any.
	TTFT time.Duration
	// TPOT is the mean time of each token after the first; 0: any.
	TPOT time.Duration
}

// RaisePriority says whose header may give a request a higher priority than its
// model has, or have it served under a name of its own choice. Anybody may ask for a
// lower one.
type RaisePriority string

const (
	// RaiseInMesh is for who has an identity in the mesh.
	RaiseInMesh RaisePriority = "mesh"
	RaiseAnyone RaisePriority = "anyone"
	RaiseNobody RaisePriority = "nobody"
)

// UsageMode says how the proxy learns token counts from streams.
type UsageMode string

const (
	// UsageInject asks the engine for a usage event in streaming requests
	// that say nothing of stream_options, and withholds that event from the
	// client. It is the default.
	UsageInject UsageMode = "inject"
	// UsageObserve sends every body as it came and reads what there is.
	UsageObserve UsageMode = "observe"
)

// ExplainMode says when an answer names the endpoint that gave it.
type ExplainMode string

// On request (the default) is for requests that carry x-fairway-explain: 1.
const (
	ExplainOnRequest ExplainMode = "on-request"
	ExplainAlways    ExplainMode = "always"
	ExplainNever     ExplainMode = "never"
)

// ShadowPolicy is one of package picker that is compared with the one that picks.
type ShadowPolicy string

const (
	ShadowNone         ShadowPolicy = "none"
	ShadowLeastRequest ShadowPolicy = "least-request"
	ShadowRoundRobin   ShadowPolicy = "round-robin"
)

// Timeouts bound the phases of an exchange. Zero means no bound, except for
// Connect, whose zero means DefaultConnectTimeout.
type Timeouts struct {
	// Connect bounds the dial of one endpoint.
	Connect time.Duration
	// FirstByte bounds the wait from the request being sent to the head of
	// the answer.
	FirstByte time.Duration
	// StreamIdle bounds the silence inside an answer.
	StreamIdle time.Duration
	// Request bounds a whole exchange.
	Request time.Duration
	// Drain bounds how long a stopping proxy waits for its streams.
	Drain time.Duration
}

// Limits bound what strangers can make the proxy hold. Zero means the
// default of each, or no bound.
type Limits struct {
	// Body is the largest request body, in bytes.
	Body int64
	// Buffers is the sum of all request bodies held at once, in bytes.
	Buffers int64
	// Headers is the largest request head, in bytes.
	Headers int
	// Connections is the number of client connections held at once.
	Connections int
	// ConnectionsByAddress is how many of them one client's address may have, in
	// IPv6 its network of 64 bits; tunnels and trusted proxies are not counted. Zero:
	// any number.
	ConnectionsByAddress int
	// RequestsByPrincipal is how many requests one principal may have under way:
	// whoever shows none is told apart by the address. Zero: any number.
	RequestsByPrincipal int
}

// Scrape says how engines are asked for their load.
type Scrape struct {
	// Interval between two scrapes of one endpoint; zero: 100 ms.
	Interval time.Duration
	// Timeout of one scrape; zero: 1 s.
	Timeout time.Duration
	// Path of the metrics page; empty: /metrics.
	Path string
}

// What the zero values stand for.
const (
	DefaultConnectTimeout = 2 * time.Second
	DefaultDrain          = 300 * time.Second
	DefaultBodyLimit      = 64 << 20
	DefaultBufferLimit    = 1 << 30
	DefaultHeaderLimit    = 64 << 10
	DefaultScrapeInterval = 100 * time.Millisecond
	DefaultScrapeTimeout  = time.Second
	DefaultMetricsPath    = "/metrics"
	DefaultPickerTimeout  = 2 * time.Second
	DefaultRemotePrefill  = picker.DefaultRemotePrefill
)
