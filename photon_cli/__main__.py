"""python -m photon_cli"""

from photon_cli.main import main

main()
