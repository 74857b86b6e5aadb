"""Health check of the images: `health.py URL` ends with 0 when the address answers 200 or, behind a password, 401."""

import sys
import urllib.error
import urllib.request

try:
    status = urllib.request.urlopen(sys.argv[1], timeout=8).status
except urllib.error.HTTPError as answer:
    status = answer.code
except OSError:
    status = 0
sys.exit(status not in (200, 401))
