package picker

import (
	"math"
	"testing"
)

func TestOthersPerOwn(t *testing.T) {
	for _, tt := range []struct {
		name      string
		seen, own []float64
		want      float64
	}{
		{"nothing seen", nil, nil, 0},
		{"alone, some on their way and some not yet noticed", []float64{9, 12}, []float64{11, 10}, 0},
		{"two others", []float64{30}, []float64{10}, 2},
		{"no requests of ours", []float64{100}, []float64{0}, maxOthers},
		{"only ours on their way", []float64{0, 1}, []float64{5, 50}, 0},
	} {
		var o others
		for range 10_000 {
			for i := range tt.seen {
				o.learn(tt.seen[i], tt.own[i])
			}
		}
		if got := o.perOwn(); math.Abs(got-tt.want) > .02*tt.want+.01 {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestOthersTold(t *testing.T) {
	for replicas, want := range map[int]float64{1: 0, 3: 2, 1000: maxOthers} {
		p := NewPool(Config{Replicas: replicas})
		p.others.learn(100, 50)
		if got := p.others.perOwn(); got != want {
			t.Errorf("%d replicas: %v others for each, want %v", replicas, got, want)
		}
	}
}

// Others are taken to do as we do, as far as it is load that decides what we do.
func TestMirroredAsFarAsNothingIsCached(t *testing.T) {
	var o others
	for range 10_000 {
		o.learn(30, 10)
	}
	if got := o.mirrored(); math.Abs(got-2*overMirror) > .1 {
		t.Errorf("at first: %v, want %v", got, 2*overMirror)
	}
	for range 10_000 {
		o.cold.add(500, 5000, coldHorizon)
	}
	if got := o.mirrored(); math.Abs(got-.2*overMirror) > .1 {
		t.Errorf("with a tenth to be computed: %v, want %v", got, .2*overMirror)
	}
	o.told = 1
	if got := o.mirrored(); got != 0 {
		t.Errorf("alone: %v", got)
	}
}

// Homes are believed in until they prove to be empty, each beginning of prompts for itself; and there are none without others.
func TestHomesAreLearned(t *testing.T) {
	p := NewPool(Config{})
	o := &p.others
	if got := o.forgiven(1); got != 0 {
		t.Errorf("alone: %v forgiven", got)
	}
	withOthers(p, 2)
	if got := o.forgiven(1); got < .8 {
		t.Errorf("at first: %v forgiven", got)
	}
	for range 500 {
		o.learnHome(1, false)
		o.learnHome(2, true)
	}
	if a, b := o.forgiven(1), o.forgiven(2); a > .3 || b < .8 {
		t.Errorf("%v forgiven where nothing is found, %v where all is", a, b)
	}
	for range 500 {
		o.learnHome(1, true)
	}
	if got := o.forgiven(1); got < .8 {
		t.Errorf("%v forgiven where all has come to be found", got)
	}
}
