package sim

// saturationRates are the requests a second that the best policy just sustains on each workload's fleet.
var saturationRates = map[string]float64{
	"shared-prefix":       22,
	"shared-prefix-short": 76,
	"chat":                150,
	"unshared":            765,
}
