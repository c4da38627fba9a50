# e2e.bash: how the e2e.sh of every suite ends early, tries again what depends on the network, and gets Debian's and Python's packages.
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

# debian PACKAGE...: installs Debian's packages, as root, unless the suite's have says that what they bring is there.
debian() {
	! have && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 0
	echo "$name: installing $*"
	# In run level 1, Debian does not start what it installs.
	retry apt-get -q update &&
		retry env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -q install -y --no-install-recommends ca-certificates "$@" && return
	echo "$name: apt-get could not install them" >&2
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
