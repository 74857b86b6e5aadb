"""Health check of the images: `health.py URL` exits with 0 if the response is 200 or, behind a password, 401."""

import sys
import urllib.error
import urllib.request

try:
    status = urllib.request.urlopen(sys.argv[1], timeout=8).status
except urllib.error.HTTPError as response:
    status = response.code
except OSError:
    status = 0
sys.exit(status not in (200, 401))
