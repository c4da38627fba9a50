// Package picker chooses the pod that will serve a request best.
package picker
