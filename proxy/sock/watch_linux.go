package sock

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// watch is one connection's place in the watcher.
type watch struct {
	id uint64
}

// watcher waits for hang-ups of all watched connections of the process with
// one epoll of its own. The epoll's descriptor lies in Go's poller, so that
// waiting holds no thread. Each connection is added once in its life and leaves
// when its descriptor is closed. An event carries the connection's number,
// which is never used again, unlike its descriptor: it cannot reach another
// connection.
//
// The goroutine and the epoll exist while there is a connection to watch.
var watcher struct {
	mu    sync.Mutex
	conns map[uint64]*Conn
	last  uint64
	file  *os.File // the epoll, nil while there is none
}

// start has c watched. It gives false when the system will not.
func (w *watch) start(c *Conn, rc syscall.RawConn) bool {
	watcher.mu.Lock()
	defer watcher.mu.Unlock()
	if watcher.file == nil && !openWatcher() {
		return false
	}
	watcher.last++
	id := watcher.last
	event := unix.EpollEvent{
		Events: unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR | unix.EPOLLET,
		Fd:     int32(uint32(id)),
		Pad:    int32(uint32(id >> 32)),
	}
	// An event may be there before this returns; it waits for the lock.
	watcher.conns[id] = c
	epoll, err := watcher.file.SyscallConn()
	if err == nil {
		ctlErr := epoll.Control(func(epfd uintptr) {
			rcErr := rc.Control(func(fd uintptr) {
				err = unix.EpollCtl(int(epfd), unix.EPOLL_CTL_ADD, int(fd), &event)
			})
			if rcErr != nil {
				err = rcErr
			}
		})
		if ctlErr != nil {
			err = ctlErr
		}
	}
	if err != nil {
		forget(id)
		return false
	}
	w.id = id
	return true
}

// stop forgets the connection. It is called before its descriptor is closed.
func (w *watch) stop() {
	if w.id == 0 {
		return
	}
	watcher.mu.Lock()
	forget(w.id)
	watcher.mu.Unlock()
}

// forget drops a number, and the watcher with the last one; watcher.mu is held.
func forget(id uint64) {
	delete(watcher.conns, id)
	if len(watcher.conns) == 0 && watcher.file != nil {
		watcher.file.Close()
		watcher.file = nil
	}
}

// openWatcher makes the epoll and starts its goroutine; watcher.mu is held.
func openWatcher() bool {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	// os.NewFile leaves the descriptor to the poller only when it is non-blocking.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return false
	}
	file := os.NewFile(uintptr(fd), "hangup-epoll")
	rc, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return false
	}
	watcher.file = file
	if watcher.conns == nil {
		watcher.conns = make(map[uint64]*Conn)
	}
	go watchHangups(rc)
	return true
}

// watchHangups delivers events until the epoll is closed.
func watchHangups(rc syscall.RawConn) {
	var events [64]unix.EpollEvent
	var n int
	wait := func(epfd uintptr) bool {
		var err error
		n, err = unix.EpollWait(int(epfd), events[:], 0)
		return n > 0 || err != nil && err != unix.EINTR
	}
	for {
		n = 0
		if err := rc.Read(wait); err != nil || n <= 0 {
			return
		}
		for _, e := range events[:n] {
			id := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
			watcher.mu.Lock()
			c := watcher.conns[id]
			watcher.mu.Unlock()
			if c != nil {
				c.hangup()
			}
		}
	}
}
