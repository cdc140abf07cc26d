//! Where the configuration comes from: a file that the user named, or the file of the ConfigMap `pristine`. While there
//! is no such ConfigMap, the built-in configuration is in force. I/O.
//!
//! "Does not exist" is only what the kubelet shows for a ConfigMap that does not exist, or is empty: a directory without
//! files. Everything else (no permission, a directory, a link to nowhere, a file with another name) is a file that cannot
//! be read: then the previous rules stay in force, because the built-in ones might evict what the user exempts.

use std::{
    borrow::Cow,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::{BUILT_IN, Configuration, Error, parse, read};

/// Where the Deployment mounts the ConfigMap.
const MOUNTED: &str = "/etc/pristine/pristine.yaml";

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    /// Whether the built-in configuration is in force if the file does not exist.
    is_optional: bool,
}

/// The text of a configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Text {
    content: Cow<'static, str>,
    /// The file in errors.
    name: String,
    /// Whether there is no file.
    pub is_built_in: bool,
}

impl Source {
    /// The file that the user named, which must exist, or that of the ConfigMap, which may be missing.
    #[must_use]
    pub fn new(named: Option<PathBuf>) -> Self {
        named.map_or_else(|| Self::optional(MOUNTED.into()), |path| Self { path, is_optional: false })
    }

    /// A file that may be missing.
    #[must_use]
    pub const fn optional(path: PathBuf) -> Self {
        Self { path, is_optional: true }
    }

    /// The directory of the file.
    #[must_use]
    pub fn folder(&self) -> &Path {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.unwrap_or_else(|| Path::new("."))
    }

    /// Reads the text.
    ///
    /// # Errors
    /// When the file cannot be read, or does not exist and is not optional.
    pub fn read(&self) -> Result<Text, Error> {
        let name = self.path.display().to_string();
        match read(&self.path) {
            Err(Error::Read { source, .. })
                if self.is_optional && source.kind() == ErrorKind::NotFound && !self.path.is_symlink() =>
            {
                self.must_be_empty()?;
                Ok(Text::built_in())
            }
            read => Ok(Text { content: read?.into(), name, is_built_in: false }),
        }
    }

    /// Reads and parses the configuration.
    ///
    /// # Errors
    /// When it cannot be read, or is invalid.
    pub fn load(&self) -> Result<Configuration, Error> {
        self.read()?.parse()
    }

    /// Rejects a ConfigMap with another key: its rules are meant to be in force.
    fn must_be_empty(&self) -> Result<(), Error> {
        let entries = match fs::read_dir(self.folder()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries,
        };
        let names = entries.and_then(|entries| {
            let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect::<Result<Vec<_>, std::io::Error>>()
        });
        let path = self.folder().display().to_string();
        let mut names = names.map_err(|source| Error::Read { path: path.clone(), source })?;
        // The kubelet's own: `..data`, and the directory that it points to. No key begins with `..`.
        names.retain(|name| !name.starts_with(".."));
        names.sort_unstable();
        let wanted = self.path.file_name().unwrap_or_default().to_string_lossy();
        match names.as_slice() {
            [] => Ok(()),
            _ => Err(Error::Invalid(format!(
                "{path} has no {wanted}, but {}: the key of the ConfigMap must be {wanted}",
                names.join(", ")
            ))),
        }
    }
}

impl Text {
    /// The built-in configuration.
    #[must_use]
    pub fn built_in() -> Self {
        Self { content: BUILT_IN.into(), name: "the built-in configuration".to_owned(), is_built_in: true }
    }

    /// Parses the configuration.
    ///
    /// # Errors
    /// [`Error::Invalid`] with name, line, column and field.
    pub fn parse(&self) -> Result<Configuration, Error> {
        parse(&self.name, &self.content)
    }

    /// The text itself.
    #[must_use]
    pub fn content(&self) -> &str {
        &self.content
    }

    /// The file, or that there is none.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Record}\n";

    /// Of the errors of Unix, on which the webhook runs.
    #[cfg(unix)]
    #[test]
    fn the_built_in_configuration_is_in_force_only_if_an_optional_file_does_not_exist() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mount/pristine.yaml");
        let (optional, named) = (Source::optional(path.clone()), Source::new(Some(path.clone())));
        let is_built_in = |source: &Source| source.read().unwrap().is_built_in;
        let error = |source: &Source| source.read().unwrap_err().to_string();
        let cannot_read = format!("cannot read the configuration {}", path.display());

        assert!(is_built_in(&optional), "there is no directory");
        assert_eq!(error(&named), cannot_read);
        fs::create_dir(folder.path().join("mount")).unwrap();
        fs::create_dir(folder.path().join("mount/..data")).unwrap();
        assert!(is_built_in(&optional), "the ConfigMap does not exist");
        assert_eq!(error(&named), cannot_read);

        fs::write(folder.path().join("mount/.pristine.yaml"), EMPTY).unwrap();
        assert!(error(&optional).contains("mount has no pristine.yaml, but .pristine.yaml: "), "a key with a dot");
        fs::remove_file(folder.path().join("mount/.pristine.yaml")).unwrap();
        fs::write(folder.path().join("mount/config.yaml"), EMPTY).unwrap();
        let message = error(&optional);
        assert!(
            message.ends_with(
                "mount has no pristine.yaml, but config.yaml: the key of the ConfigMap must be pristine.yaml"
            ),
            "{message}"
        );
        fs::write(&path, EMPTY).unwrap();
        assert!(!is_built_in(&optional) && !is_built_in(&named));
        assert_eq!(optional.load().unwrap().policy.rules.len(), 0);

        fs::remove_file(&path).unwrap();
        fs::remove_file(folder.path().join("mount/config.yaml")).unwrap();
        assert!(is_built_in(&optional), "the ConfigMap was deleted");
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert_eq!(error(&optional), cannot_read, "a link to nowhere");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(error(&optional), cannot_read, "a directory");
        fs::remove_dir_all(folder.path().join("mount")).unwrap();
        fs::write(folder.path().join("mount"), "").unwrap();
        assert_eq!(error(&optional), cannot_read, "a file in place of the directory");
    }

    #[test]
    fn the_built_in_configuration_records_kube_system_and_machines_and_evicts_everything_else() {
        let policy = parse("built in", BUILT_IN).unwrap().policy;
        let record = super::super::Verdict::Mark(crate::mark::Disposition::Record);
        let names: Vec<_> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
        assert_eq!(names, ["kube-system", "machines"]);
        assert!(policy.rules.iter().all(|rule| rule.action == record));
        let machines = &policy.rules[1].matches;
        assert_eq!((machines.pod_token, machines.tty), (Some(true), Some(false)));
        assert_eq!(super::super::policy::overlap::dead(&policy.rules), []);
        // Each rule is one line, so that removing a line removes a rule.
        for rule in &names {
            let without: String = BUILT_IN
                .lines()
                .filter(|line| !line.contains(&format!("name: {rule},")))
                .fold(String::new(), |all, line| all + line + "\n");
            assert_eq!(parse("built in", &without).unwrap().policy.rules.len(), names.len() - 1, "{rule}");
        }
    }
}
