package main

import (
	"testing"
	"testing/fstest"
)

func TestCgroupMemory(t *testing.T) {
	for name, test := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"no cgroups":    {nil, 0},
		"version 2":     {map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "268435456\n"}, 268435456},
		"no limit":      {map[string]string{"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 0},
		"a parent's":    {map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "300\n", "sys/fs/cgroup/a/memory.max": "200\n"}, 200},
		"a container's": {map[string]string{"proc/self/cgroup": "0::/kubepods/pod1/c1\n", "sys/fs/cgroup/memory.max": "500\n"}, 500},
		"of a sibling":  {map[string]string{"proc/self/cgroup": "0::/../c1\n", "sys/fs/cgroup/memory.max": "500\n", "sys/fs/c1/memory.max": "1\n"}, 500},
		"version 1": {map[string]string{
			"proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/a\n0::/\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "400\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 400},
		"version 1, no limit": {map[string]string{"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		"nonsense":            {map[string]string{"proc/self/cgroup": "::::\n\nx\n", "sys/fs/cgroup/memory.max": "-5\n"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{}
			for path, text := range test.files {
				root[path] = &fstest.MapFile{Data: []byte(text)}
			}
			if got := cgroupMemory(root); got != test.want {
				t.Errorf("%d, want %d", got, test.want)
			}
		})
	}
}

func TestBodiesAreBoundedByMemory(t *testing.T) {
	for _, test := range []struct{ memory, configured, want int64 }{
		{0, 0, 1 << 30},
		{0, 5 << 30, 5 << 30},
		{300 << 20, 0, 100 << 20},
		{300 << 20, 50 << 20, 50 << 20},
	} {
		if got := (&app{memory: test.memory}).boundedBuffers(test.configured); got != test.want {
			t.Errorf("of %d MiB, %d configured: %d, want %d", test.memory>>20, test.configured, got, test.want)
		}
	}
}
