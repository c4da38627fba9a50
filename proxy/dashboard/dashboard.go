// Package dashboard is the page for those who want to see what the proxy does: its
// pods, its traffic and its last receipts, as it happens.
//
// What it shows comes from the metrics that Prometheus would scrape, read once a
// second, so that the two agree. A Dashboard keeps the last ten minutes of a few
// curves, in a fixed amount of memory. Pages follow by server-sent events; their
// number is bounded, and one that does not read is left behind.
//
// The page is plain HTML, CSS and JavaScript beside this file, embedded as it is,
// and loads nothing from elsewhere: its Content-Security-Policy forbids that.
package dashboard

import (
	"embed"
	"encoding/json"
	"io/fs"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/proxy/account"
)

const (
	// interval is that of frames.
	interval = time.Second
	// kept is how many points of the curves are kept: ten minutes.
	kept = int(10 * time.Minute / interval)
	// maxPages is how many pages may follow at the same time.
	maxPages = 16
	// behind is how many events a page may be behind before it is cut off.
	behind = 8
	// writeTimeout bounds how long one event may take to be written.
	writeTimeout = 10 * time.Second
	// shownReceipts is how many of the last receipts a frame has.
	shownReceipts = 30
)

//go:embed assets
var assets embed.FS

// Source is what there is to show. None of it may be nil.
type Source struct {
	Version, Replica string
	// Ready says whether requests are wanted; a non-empty reason says why not.
	Ready func() (reason string)
	// Gatherer holds the metrics.
	Gatherer prometheus.Gatherer
	// Endpoints gives a value that is shown as JSON: what /endpoints says.
	Endpoints func() any
	// Receipts gives the receipts of the last exchanges, the newest first.
	Receipts func(account.Query) []account.Receipt
}

// Dashboard is safe for concurrent use.
type Dashboard struct {
	source Source
	files  http.Handler
	page   []byte
	stop   chan struct{}
	done   sync.WaitGroup

	sampler sampler // owned by run

	mu     sync.Mutex // guards what follows
	points []Point    // the oldest first
	pages  map[chan []byte]bool
	closed bool
}

// New starts to keep curves. Close ends that.
func New(s Source) *Dashboard {
	files, err := fs.Sub(assets, "assets")
	if err != nil {
		panic(err) // not with an embedded folder
	}
	page, err := fs.ReadFile(files, "index.html")
	if err != nil {
		panic(err)
	}
	d := &Dashboard{
		source: s, files: http.FileServerFS(files), page: page,
		stop: make(chan struct{}), pages: make(map[chan []byte]bool), points: make([]Point, 0, kept),
	}
	d.done.Go(d.run)
	return d
}

// Close ends it, with all pages that follow.
func (d *Dashboard) Close() {
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		close(d.stop)
	}
	d.mu.Unlock()
	d.done.Wait()
}

// run takes a point, and gives a frame to whoever follows, again and again.
func (d *Dashboard) run() {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		d.turn(time.Now())
		select {
		case <-d.stop:
			d.mu.Lock()
			defer d.mu.Unlock()
			for page := range d.pages {
				d.leave(page)
			}
			return
		case <-tick.C:
		}
	}
}

// turn takes a point and tells it.
func (d *Dashboard) turn(now time.Time) {
	families, err := d.source.Gatherer.Gather()
	if err != nil && len(families) == 0 {
		return
	}
	frame := d.sampler.sample(families, now)
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.points) == kept {
		d.points = slices.Delete(d.points, 0, 1)
	}
	d.points = append(d.points, frame.Now)
	if len(d.pages) == 0 {
		return
	}
	event := d.event("frame", d.complete(frame))
	for page := range d.pages {
		select {
		case page <- event:
		default: // it does not read
			d.leave(page)
		}
	}
}

// leave cuts a page off. d.mu is held.
func (d *Dashboard) leave(page chan []byte) {
	if d.pages[page] {
		delete(d.pages, page)
		close(page)
	}
}

// complete adds what does not come from the metrics.
func (d *Dashboard) complete(f Frame) Frame {
	f.Version, f.Replica, f.NotReady = d.source.Version, d.source.Replica, d.source.Ready()
	f.Pods = d.source.Endpoints()
	f.Receipts = []receiptLine{}
	for _, r := range d.source.Receipts(account.Query{Limit: shownReceipts}) {
		f.Receipts = append(f.Receipts, newReceiptLine(&r))
	}
	return f
}

// event is a server-sent event with a value as JSON.
func (d *Dashboard) event(name string, v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		data = []byte("null") // values that JSON cannot say are not among those that are shown
	}
	return slices.Concat([]byte("event: "+name+"\ndata: "), data, []byte("\n\n"))
}

// policy lets the page load what is beside it, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// ServeHTTP serves the page at /, and what it needs below /dashboard/.
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-cache")
	switch r.URL.Path {
	case "/":
		h.Set("Content-Type", "text/html; charset=utf-8")
		w.Write(d.page)
	case "/dashboard/events":
		d.follow(w, r)
	default:
		http.StripPrefix("/dashboard/", d.files).ServeHTTP(w, r)
	}
}

// follow sends what was kept, and then each frame, until either side ends it.
func (d *Dashboard) follow(w http.ResponseWriter, r *http.Request) {
	page := make(chan []byte, behind)
	d.mu.Lock()
	if d.closed || len(d.pages) == maxPages {
		d.mu.Unlock()
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many pages follow already: close one", http.StatusServiceUnavailable)
		return
	}
	history := d.event("history", d.points)
	d.pages[page] = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.leave(page)
	}()

	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	send := func(event []byte) bool {
		out.SetWriteDeadline(time.Now().Add(writeTimeout)) // whoever cannot is found out by the write
		_, err := w.Write(event)
		return err == nil && out.Flush() == nil
	}
	if !send(append([]byte("retry: 2000\n\n"), history...)) {
		return
	}
	for {
		select {
		case event, open := <-page:
			if !open || !send(event) {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}
