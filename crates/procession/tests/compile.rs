//! Programs that must not compile, and what the compiler says about them.

#[test]
fn what_can_not_run_elsewhere_does_not_compile() {
    let cases = trybuild::TestCases::new();
    // With one that passes, the programs are built: what a closure captures is looked at only then.
    cases.pass("tests/compile_pass/*.rs");
    cases.compile_fail("tests/compile_fail/*.rs");
}
