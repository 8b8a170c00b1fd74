//! What must not compile, and what the compiler says then: each message names the fix.
//!
//! After a change of a message, `TRYBUILD=overwrite cargo test -p trunkline --test compile_fail`
//! writes the new ones; read them before they are committed.

#[test]
fn messages_of_the_compiler_name_the_fix() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
