package route

import "github.com/fairway-proxy/fairway/proxy/normalize"

// spell gives a rule's path the spelling that requests' paths have.
func spell(path string) string {
	spelled, err := normalize.Base.Target(nil, []byte(path))
	if err != nil {
		return path // no request is spelled like that
	}
	return string(spelled)
}
