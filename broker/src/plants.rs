//! Places where a bug can be planted, or the process be crashed, to see that tests notice. Both exist
//! only in the build that `chaos/planted` makes of this source: in every other one a plant is `false`,
//! a failpoint is nothing, and no name of either is in the binary.

/// Whether this bug is planted.
macro_rules! planted {
    ($plant:ident) => {{
        #[cfg(plants)]
        let planted = hutong_plants::is(hutong_plants::Plant::$plant);
        #[cfg(not(plants))]
        let planted = false;
        planted
    }};
    // Only so often.
    ($plant:ident, once in $times:literal) => {{
        #[cfg(plants)]
        let planted =
            hutong_plants::is(hutong_plants::Plant::$plant) && hutong_plants::once_in($times);
        #[cfg(not(plants))]
        let planted = false;
        planted
    }};
}

/// An edge of a commit: what lies before it and after it must be right whichever was reached last.
macro_rules! failpoint {
    ($point:ident) => {
        #[cfg(plants)]
        hutong_plants::reach(hutong_plants::Failpoint::$point);
    };
}
