// Package authz decides who may do what, by Istio's AuthorizationPolicy and
// RequestAuthentication and by API keys. Paths are judged in the one spelling that
// package normalize has given them.
//
// A Config is plain data, whoever wrote it. A Compiler makes Guards of it, which
// never change; a new Config takes new ones. What cannot be understood narrows
// what is allowed and widens what is denied, and is told as a Finding.
//
// The rules are Istio's: istio/api security/v1beta1/authorization_policy.proto
// says what each field means, istio/istio pilot/pkg/security/authz (builder, model
// and matcher) what that comes to in Envoy. Judging allocates nothing.
package authz
