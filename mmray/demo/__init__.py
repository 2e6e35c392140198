"""What `mmray demo` needs beside the job itself: pictures, tar shards and an S3 server of its own.

Nothing outside this room depends on it, and none of its packages is needed to run a job.
"""
