//! Places where a bug can be planted, to see that tests notice. They exist only in the build that
//! `chaos/planted` makes of this source: in every other one a plant is `false`, and no name of one is in
//! the binary.

/// Whether this bug is planted.
macro_rules! planted {
    ($plant:ident) => {{
        #[cfg(plants)]
        let planted = hutong_plants::is(hutong_plants::Plant::$plant);
        #[cfg(not(plants))]
        let planted = false;
        planted
    }};
}
