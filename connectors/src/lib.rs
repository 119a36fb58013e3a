//! Client SDK, sources, sinks and mapping
