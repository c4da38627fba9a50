package authz

// Identity is who a request says it is from, verified: a token's issuer, subject and
// claims, or the name of an API key. It does not change.
type Identity struct {
	issuer, subject string
	name            string // both
	claims          map[string]any
}

// String is the request's principal, "<iss>/<sub>".
func (i *Identity) String() string {
	if i == nil {
		return ""
	}
	return i.name
}

func newIdentity(issuer, subject string, claims map[string]any) *Identity {
	return &Identity{issuer: issuer, subject: subject, name: issuer + "/" + subject, claims: claims}
}

// claim finds a claim by its path, nil for none.
func (i *Identity) claim(path []string) any {
	if i == nil {
		return nil
	}
	claims := i.claims
	for _, name := range path[:len(path)-1] {
		claims, _ = claims[name].(map[string]any)
	}
	return claims[path[len(path)-1]]
}
