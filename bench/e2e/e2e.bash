# e2e.bash: how the e2e.sh of every suite ends early, tries again what depends on the network, and keeps Python packages.
# They source it, after setting name to the suite's target.

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

# environment NAME FOLDER: sets venv to a virtual environment of FOLDER's requirements.txt, which is kept outside of the
# repository and named after what makes it, so that a change makes a new one.
environment() {
	local cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e
	venv=$cache/$1-$({ cat "$2/requirements.txt" && python3 -VV; } | sha256sum | cut -c 1-12)
	[ ! -e "$venv/complete" ] || return 0
	rm -rf "$venv"
	mkdir -p "$cache"
	python3 -m venv "$venv" && retry "$venv/bin/pip" install -q --disable-pip-version-check --no-deps -r "$2/requirements.txt" ||
		fail "pip could not install $2/requirements.txt"
	touch "$venv/complete"
}

# routers: sets routers to the folder of the routers for vLLM that vllm/routers.txt names, each in an environment of its
# own: their commands have the same names.
routers() {
	local list router venv
	list=$(dirname "${BASH_SOURCE[0]}")/vllm/routers.txt
	routers=${XDG_CACHE_HOME:-$HOME/.cache}/fairway-e2e/routers-$(sha256sum <"$list" | cut -c 1-12)
	[ ! -e "$routers/complete" ] || return 0
	while read -r router; do
		echo "$name: installing $router" >&2
		venv=$routers/${router%%==*}
		rm -rf "$venv"
		python3 -m venv "$venv"
		retry "$venv/bin/pip" install -q --disable-pip-version-check "$router" >&2 || fail "$router could not be installed"
	done < <(grep -v '^#' "$list")
	touch "$routers/complete"
}
