# e2e.bash: how the e2e.sh of every suite ends early, and tries again what depends on the network. They source it, after
# setting name to the suite's target.

skip() {
	echo "$name: skipped everything: $*"
	echo "0 passed, 0 failed, 1 skipped"
	exit 0
}

fail() {
	echo "$name: $*"
	echo "0 passed, 1 failed, 0 skipped"
	exit 1
}

# retry COMMAND...: up to 3 times.
retry() {
	local try
	for try in 1 2 3; do
		"$@" && return
		echo "$name: '$*' failed (try $try of 3)" >&2
		sleep $((try * 5))
	done
	return 1
}
