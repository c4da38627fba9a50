package kube

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Types that their project's Go module has no more, as far as they are read.

// alphaGroup is the group of what the Inference Extension tries out.
const alphaGroup = "inference.networking.x-k8s.io"

// AlphaPool is the InferencePool of inference.networking.x-k8s.io/v1alpha2, the
// one of the announcement of July 2025.
type AlphaPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec AlphaPoolSpec `json:"spec"`
	// Status is of no interest here.
	Status any `json:"status,omitempty"`
}

// AlphaPoolSpec selects pods and says at which port they serve.
type AlphaPoolSpec struct {
	Selector         map[string]string `json:"selector"`
	TargetPortNumber int32             `json:"targetPortNumber"`
	ExtensionRef     *AlphaExtension   `json:"extensionRef,omitempty"`
}

// AlphaExtension names an endpoint picker.
type AlphaExtension struct {
	Group       *string `json:"group,omitempty"`
	Kind        *string `json:"kind,omitempty"`
	Name        string  `json:"name"`
	PortNumber  *int32  `json:"portNumber,omitempty"`
	FailureMode *string `json:"failureMode,omitempty"`
}

// InferenceModel is a name that users ask for (v1alpha2).
type InferenceModel struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   InferenceModelSpec `json:"spec"`
	Status any                `json:"status,omitempty"`
}

// InferenceModelSpec says where a model is served, and under which names.
type InferenceModelSpec struct {
	ModelName    string        `json:"modelName"`
	Criticality  *string       `json:"criticality,omitempty"` // nil: Standard
	TargetModels []TargetModel `json:"targetModels,omitempty"`
	PoolRef      PoolRef       `json:"poolRef"`
}

// TargetModel is a name that engines serve. Either all of a model's have a weight,
// or none has.
type TargetModel struct {
	Name   string `json:"name"`
	Weight *int32 `json:"weight,omitempty"`
}

// PoolRef names an InferencePool of the same namespace.
type PoolRef struct {
	Group string `json:"group,omitempty"`
	Kind  string `json:"kind,omitempty"`
	Name  string `json:"name"`
}
