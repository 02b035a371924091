"""Orders of an operator: pause, resume, release, retry, resend and drop."""
