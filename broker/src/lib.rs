//! The broker: ingress, admission, routing, commit, apply, tail and fan-out
