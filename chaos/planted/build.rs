//! Compiles a crate of the product a second time, with the places where bugs can be planted in it. A
//! package of its own and not a feature: features of one package are united over a workspace, so a
//! feature would get into the binaries that are built beside the tests.

fn main() {
    println!("cargo::rustc-cfg=plants");
    println!("cargo::rerun-if-changed=../build.rs");
}
