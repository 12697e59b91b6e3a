//! Joins HTTP's reports on checks to the room that runs them.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::catalog::Status;
use crate::health::{self, Health};
use crate::http;
use crate::node::SubmitError;

/// The checks of this node, as the HTTP face sees them.
pub(super) struct Reports {
    health: Health,
}

impl Reports {
    pub(super) fn new(health: Health) -> Self {
        Self { health }
    }
}

impl http::Reports for Reports {
    fn report(
        &self,
        check_id: String,
        status: Status,
        output: String,
    ) -> BoxFuture<'_, Result<(), http::ReportError>> {
        async move {
            self.health.report(&check_id, status, &output).await.map_err(|error| match error {
                health::ReportError::UnknownCheck(id) | health::ReportError::NotTtl(id) => {
                    http::ReportError::NotTtl(id)
                }
                health::ReportError::NotWritten(error) => error.into(),
                health::ReportError::NotRunning => SubmitError::Stopping.into(),
            })
        }
        .boxed()
    }

    fn output(&self, _check_id: &str) -> Option<String> {
        None
    }
}
