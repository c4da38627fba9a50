package hbone

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairway-proxy/fairway/proxy/sock"
)

// read is the reader: it reads frames until the connection ends.
func (c *conn) read() {
	err := c.readFrames()
	var ce http2.ConnectionError
	switch {
	case errors.As(err, &ce):
		err = c.blame(http2.ErrCode(ce), err)
	case errors.Is(err, http2.ErrFrameTooLarge):
		err = c.blame(http2.ErrCodeFrameSize, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errEnded
	}
	c.mu.Lock()
	c.failLocked(err)
	if ce == 0 && !errors.Is(err, http2.ErrFrameTooLarge) {
		err = c.err // what has really ended it, if the reading only followed
	}
	c.mu.Unlock()
	c.settle()
	c.role.gone(err)
}

// blame ends the connection because of what the peer has sent, tells it so, and
// gives the error for the log.
func (c *conn) blame(code http2.ErrCode, err error) error {
	if detail := c.fr.ErrorDetail(); detail != nil {
		err = fmt.Errorf("%w: %w", err, detail)
	}
	if code == http2.ErrCodeEnhanceYourCalm && !c.client {
		hear := sock.Ignore(c.raw)
		select {
		case <-time.After(c.limits.calm):
		case <-c.over:
		}
		hear()
	}
	c.mu.Lock()
	c.end(code, time.Second) // first: the last stream's end may be another's word
	for _, s := range c.streams {
		c.drop(s, err)
	}
	c.mu.Unlock()
	c.settle()
	// Bytes that nobody reads would have the kernel reset the connection before the
	// peer has read the GOAWAY.
	io.Copy(io.Discard, c.raw)
	return err
}

func (c *conn) readFrames() error {
	if !c.client {
		var preface [len(http2.ClientPreface)]byte
		if _, err := io.ReadFull(c.br, preface[:]); err != nil {
			return err
		}
		if string(preface[:]) != http2.ClientPreface {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
	}
	for {
		fh, err := c.fr.ReadFrameHeader()
		if err != nil {
			return err
		}
		if !c.greeted && fh.Type != http2.FrameSettings {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		if err := c.readFrame(fh); err != nil {
			var se http2.StreamError
			if !errors.As(err, &se) {
				return err
			}
			if err := c.streamError(se); err != nil {
				return err
			}
		}
	}
}

// streamError resets a stream because of what the peer sent on it; too many are a
// flood.
func (c *conn) streamError(se http2.StreamError) error {
	if !c.resets.take(c.now()) {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[se.StreamID]; s != nil {
		c.reset(s, se.Code, &ResetError{Code: se.Code})
	} else {
		c.rst(se.StreamID, se.Code)
		c.expect(baseWindow)
	}
	return nil
}

// readFrame takes the frame of which the head was read.
func (c *conn) readFrame(fh http2.FrameHeader) error {
	if fh.Type != http2.FrameWindowUpdate && !c.flood.Received(fh.Type, fh.Flags, int(fh.Length), 0) {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	switch fh.Type {
	case http2.FrameData:
		return c.readData(fh)
	case http2.FrameHeaders, http2.FrameContinuation, http2.FrameSettings, http2.FramePing, http2.FrameGoAway,
		http2.FrameWindowUpdate, http2.FrameRSTStream, http2.FramePriority:
		if fh.Length > maxOtherFrame {
			return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
		}
	case http2.FramePushPromise:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	default:
		return c.skip(int(fh.Length))
	}
	f, err := c.fr.ReadFrameForHeader(fh)
	if err != nil {
		return err
	}
	switch f := f.(type) {
	case *http2.HeadersFrame:
		if f.StreamID&1 == 0 || f.HasPriority() && f.Priority.StreamDep == f.StreamID {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		c.block, c.fragments, c.blockID, c.blockEnd = c.block[:0], 0, f.StreamID, f.StreamEnded()
		return c.readBlock(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.ContinuationFrame:
		return c.readBlock(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.SettingsFrame:
		return c.readSettings(f)
	case *http2.PingFrame:
		return c.readPing(f)
	case *http2.GoAwayFrame:
		return c.readGoAway(f)
	case *http2.WindowUpdateFrame:
		return c.readWindowUpdate(f)
	case *http2.RSTStreamFrame:
		return c.readReset(f)
	}
	return nil
}

// skip reads n bytes that nobody wants.
func (c *conn) skip(n int) error {
	for n > 0 {
		m, err := c.br.Read(c.discard[:min(n, len(c.discard))])
		if err != nil {
			return err
		}
		n -= m
	}
	return nil
}

// readBlock collects a header block, and passes it on when it is whole.
func (c *conn) readBlock(fragment []byte, whole bool) error {
	if c.fragments++; c.fragments > maxFragments || len(c.block)+len(fragment) > maxHeaderBlock {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	if !whole || len(c.block) > 0 {
		c.block = append(c.block, fragment...)
		if !whole {
			return nil
		}
		fragment = c.block
	}
	c.fields.reset()
	_, err := c.hdec.Write(fragment)
	if err == nil {
		err = c.hdec.Close()
	}
	c.block = nil
	if err != nil {
		return http2.ConnectionError(http2.ErrCodeCompression)
	}
	return c.role.headers(c.blockID, &c.fields, c.blockEnd)
}

func (c *conn) readSettings(f *http2.SettingsFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.IsAck() {
		if c.settingAt != 0 {
			c.rtt.Store(c.now() - c.settingAt)
			c.settingAt = 0
		}
		return nil
	}
	initial := c.initial
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingInitialWindowSize:
			initial = int64(s.Val)
		case http2.SettingMaxFrameSize:
			c.maxFrame = min(int(s.Val), dataFrame)
		case http2.SettingMaxConcurrentStreams:
			c.maxOpen = int64(s.Val)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// Once for the frame, which may say it thousands of times.
	if by := initial - c.initial; by != 0 {
		c.initial = initial
		for _, s := range c.streams {
			if c.widen(s, by) != nil {
				return http2.ConnectionError(http2.ErrCodeFlowControl)
			}
		}
	}
	c.controlFrame(http2.FrameSettings, http2.FlagSettingsAck, 0, nil)
	c.greeted = true
	return nil
}

// widen changes the window of a stream. c.mu is held.
func (c *conn) widen(s *stream, by int64) error {
	if s.window += by; s.window > windowLimit {
		return http2.StreamError{StreamID: s.id, Code: http2.ErrCodeFlowControl}
	}
	if s.window > 0 && len(s.out) > 0 {
		c.w.queue.push(s)
	}
	return nil
}

func (c *conn) readWindowUpdate(f *http2.WindowUpdateFrame) error {
	if !c.flood.Received(f.Type, f.Flags, int(f.Length), f.Increment) {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.StreamID == 0 {
		if c.w.window += int64(f.Increment); c.w.window > windowLimit {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		return nil
	}
	if s := c.streams[f.StreamID]; s != nil {
		return c.widen(s, int64(f.Increment))
	}
	if c.idle(f.StreamID) {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

// idle tells whether a stream was never opened. c.mu is held.
func (c *conn) idle(id uint32) bool {
	return id&1 == 0 || c.client && id >= c.nextID || !c.client && id > c.seenPeer
}

func (c *conn) readPing(f *http2.PingFrame) error {
	if f.IsAck() {
		c.mu.Lock()
		if c.pingAt != 0 {
			c.rtt.Store(c.now() - c.pingAt)
			c.pingAt = 0
		}
		draining := c.draining == 1 && f.Data == drainPing
		c.mu.Unlock()
		if draining {
			c.drained()
		}
		return nil
	}
	c.mu.Lock()
	c.controlFrame(http2.FramePing, http2.FlagPingAck, 0, f.Data[:])
	c.mu.Unlock()
	return nil
}

func (c *conn) readGoAway(f *http2.GoAwayFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = true
	var err error = errUnprocessed
	if f.ErrCode != http2.ErrCodeNo {
		debug := f.DebugData()
		err = &GoAwayError{f.ErrCode, string(debug[:min(len(debug), 256)])}
	}
	if c.client {
		for id, s := range c.streams {
			if id > f.LastStreamID {
				s.unprocessed = f.ErrCode == http2.ErrCodeNo
				c.drop(s, err)
			}
		}
		if len(c.streams) == 0 {
			c.end(http2.ErrCodeNo, c.limits.linger)
		}
	}
	return nil
}

func (c *conn) readReset(f *http2.RSTStreamFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[f.StreamID]
	if s == nil {
		if c.idle(f.StreamID) {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		return nil
	}
	if !c.client && !s.used && !s.heard() && !c.resets.take(c.now()) {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	s.unprocessed = f.ErrCode == http2.ErrCodeRefusedStream
	c.drop(s, &ResetError{Code: f.ErrCode, ByPeer: true})
	return nil
}

// readData takes a DATA frame.
func (c *conn) readData(fh http2.FrameHeader) error {
	id, n := fh.StreamID, int(fh.Length)
	if id == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	end := fh.Flags.Has(http2.FlagDataEndStream)
	// The connection's window is given back at once, what the stream does with it
	// notwithstanding.
	if c.credit -= int64(n); c.credit < 0 {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	c.mu.Lock()
	if give := connWindow - c.credit; give >= connWindow/8 {
		c.windowUpdate(0, give)
		c.credit = connWindow
	}
	s := c.streams[id]
	idle := s == nil && c.idle(id)
	if s == nil {
		c.late -= int64(n)
	}
	flood := c.late < 0
	c.mu.Unlock()
	switch {
	case idle:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	case flood:
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	padding := 0
	if fh.Flags.Has(http2.FlagDataPadded) {
		if n == 0 {
			return http2.ConnectionError(http2.ErrCodeFrameSize)
		}
		b, err := c.br.ReadByte()
		if err != nil {
			return err
		}
		if padding = int(b); padding >= n {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		n -= 1 + padding
	}
	if s == nil {
		return c.skip(n + padding) // late, on a stream that has ended
	}
	if err := s.receive(n, int(fh.Length)-n); err != nil {
		return err
	}
	if err := c.skip(padding); err != nil {
		return err
	}
	if end {
		c.mu.Lock()
		c.peerEnded(s)
		c.mu.Unlock()
	}
	return nil
}

// peerEnded notes that the peer has ended its half. c.mu is held.
func (c *conn) peerEnded(s *stream) {
	if s.peerDone {
		return
	}
	s.peerDone = true
	s.endReading()
	if s.endSent {
		c.remove(s)
	}
}
