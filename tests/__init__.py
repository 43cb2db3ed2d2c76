"""The tests, by what they need: unit, host, kvm, sev."""
