// Package authz decides who may do what: Istio's AuthorizationPolicy and
// RequestAuthentication, API keys, and the one spelling of a path that is judged
// and sent on.
//
// A Config is plain data, whoever wrote it. A Compiler makes Guards of it, which
// never change; a new Config takes new ones. What cannot be understood narrows
// what is allowed and widens what is denied, and is told as a Finding.
//
// The rules are Istio's: istio/api security/v1beta1/authorization_policy.proto
// says what each field means, istio/istio pilot/pkg/security/authz (builder, model
// and matcher) what that comes to in Envoy. Judging allocates nothing.
package authz
