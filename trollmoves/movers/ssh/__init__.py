"""SCP and SFTP movers over shared SSH logins."""
