//! Root certificates of TLS: those of a file that a variable names, else the ones that are compiled in.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

/// The variables, by precedence.
const VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"];

/// A file of root certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFile {
    /// The variable that names it.
    variable: &'static str,
    path: PathBuf,
}

/// A file of root certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}: {fault}", file.variable, file.path.display())]
pub struct CertificateError {
    file: CertificateFile,
    fault: CertificateFault,
}

#[derive(Debug, thiserror::Error)]
enum CertificateFault {
    #[error(transparent)]
    Read(io::Error),
    #[error("expected certificates in PEM format; got none")]
    None,
    #[error("expected certificates in PEM format; {0}")]
    Wrong(String),
}

impl CertificateFile {
    /// The file of the process's environment.
    pub(crate) fn of_environment() -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self::named_by(&|name| path_of(&variable, name))
    }

    /// The file that the variables name, if any; `path` is the path in a variable.
    pub(crate) fn named_by(path: &dyn Fn(&str) -> Option<PathBuf>) -> Option<Self> {
        VARIABLES.into_iter().find_map(|variable| Some(Self { variable, path: path(variable)? }))
    }

    /// The certificates of the file, at least one.
    ///
    /// # Errors
    /// The file cannot be read, or has no certificates.
    pub(crate) fn read(&self) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
        let wrong = |fault| CertificateError { file: self.clone(), fault };
        let text = std::fs::read(&self.path).map_err(|error| wrong(CertificateFault::Read(error)))?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        match certificates {
            Ok(certificates) if certificates.is_empty() => Err(wrong(CertificateFault::None)),
            Ok(certificates) => Ok(certificates),
            Err(error) => Err(wrong(CertificateFault::Wrong(error.to_string()))),
        }
    }

    /// The error of a certificate of the file that is none.
    pub(super) fn wrong(&self, error: &impl ToString) -> CertificateError {
        CertificateError { file: self.clone(), fault: CertificateFault::Wrong(error.to_string()) }
    }
}

/// Adds to an error about a server's certificate how other root certificates are given.
pub(crate) fn with_hint(text: String) -> String {
    match text.contains("certificate") {
        true => text + "; SSL_CERT_FILE names a file of other root certificates",
        false => text,
    }
}

/// The path in a variable. A leading `~` reaches this process where no shell has replaced it, such as in a
/// unit file.
pub(crate) fn path_of(variable: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(variable(name)?);
    match (path.strip_prefix("~"), variable("HOME")) {
        (Ok(rest), Some(user)) => Some(PathBuf::from(user).join(rest)),
        _ => Some(path),
    }
}
