"""What `Storage` hands to s3fs, pyarrow and deltalake: the same endpoint, keys and patience."""

from typing import Any

from mmray.storage.s3 import CONNECT_SECONDS, LIBRARY_ATTEMPTS, READ_SECONDS, Access


def s3_filesystem(at: Access, uri: str) -> Any:
    """An s3fs file system with no cache of listings, made once for each set of keys."""
    import s3fs

    keys = at.keys(uri)
    if keys not in at.filesystems:
        at.filesystems.clear()  # of keys that have expired
        at.filesystems[keys] = s3fs.S3FileSystem(
            key=keys.access,
            secret=keys.secret,
            token=keys.token,
            endpoint_url=at.endpoint,
            client_kwargs={"region_name": at.region},
            config_kwargs=at.config(LIBRARY_ATTEMPTS),
            default_block_size=8 * 1024 * 1024,
            use_listings_cache=False,
            # fsspec's own cache keeps one instance for each thread.
            skip_instance_cache=True,
        )
    return at.filesystems[keys]


def s3_arrow_filesystem(at: Access, uri: str) -> Any:
    """A pyarrow file system; temporary keys aren't renewed in it, so make one for each use."""
    import pyarrow.fs

    keys = at.keys(uri)
    return pyarrow.fs.S3FileSystem(
        access_key=keys.access,
        secret_key=keys.secret,
        session_token=keys.token,
        region=at.region,
        endpoint_override=at.endpoint,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=LIBRARY_ATTEMPTS),
    )


def s3_delta_options(at: Access, uri: str) -> dict[str, str]:
    """Option names of the object_store crate, as deltalake takes them."""
    keys = at.keys(uri)
    options = {
        "AWS_ACCESS_KEY_ID": keys.access,
        "AWS_SECRET_ACCESS_KEY": keys.secret,
        "AWS_REGION": at.region,
        "conditional_put": "etag",
        "connect_timeout": f"{CONNECT_SECONDS}s",
        "timeout": f"{READ_SECONDS}s",
        # Its pauses start at 0.1 s and are drawn at random: ten of them can be over in 2 s.
        "max_retries": "25",
        "retry_timeout": "60s",
    }
    if keys.token:
        options["AWS_SESSION_TOKEN"] = keys.token
    if at.endpoint:
        options["AWS_ENDPOINT_URL"] = at.endpoint
        if at.endpoint.startswith("http://"):
            options["AWS_ALLOW_HTTP"] = "true"
    return options
