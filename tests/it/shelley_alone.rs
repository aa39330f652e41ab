//! The example outside of this repository: a crate of its own, which knows nothing of `inflight` but what is public.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use crate::stage::output;

/// Frees the test; from nothing it takes a minute or two.
const MOST: Duration = Duration::from_secs(500);

/// As `examples/shelley/main.rs` says; the versions are those of Cargo.lock.
const DEPENDENCIES: &str = r#"
axum = "*"
futures-util = "*"
jiff = { version = "*", default-features = false, features = ["std"] }
reqwest = { version = "*", default-features = false, features = ["json"] }
rustix = { version = "*", features = ["fs", "process"] }
serde = { version = "*", features = ["derive"] }
serde_json = "*"
tempfile = "*"
tokio = { version = "*", features = ["full"] }
"#;

/// Makes the crate in `dir`.
fn make(dir: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = format!(
        "[package]\nname = \"alone\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         inflight = {{ path = \"{}\", features = [\"full\"] }}{DEPENDENCIES}",
        root.display()
    );
    fs::create_dir(dir.join("src")).unwrap();
    fs::write(dir.join("Cargo.toml"), manifest).unwrap();
    fs::copy(root.join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
    for file in fs::read_dir(root.join("examples/shelley")).unwrap() {
        let file: PathBuf = file.unwrap().path();
        let name = file.file_name().unwrap();
        fs::copy(&file, dir.join("src").join(name)).unwrap();
    }
}

#[test]
#[ignore = "compiles all it needs anew"]
fn the_example_is_a_crate_of_its_own_where_it_is_copied_out() {
    let dir = tempfile::TempDir::new().unwrap();
    make(dir.path());

    let cargo = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--quiet"])
        .current_dir(dir.path())
        .env(
            "CARGO_TARGET_DIR",
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("alone"),
        )
        .env("RUSTFLAGS", "-D warnings")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = output(cargo.unwrap(), MOST);

    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
