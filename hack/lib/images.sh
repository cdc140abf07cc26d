# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# Two images of one static busybox, as OCI archives in the cache. No registry is used.

pause_image=localhost/pristine/pause:1
test_image=localhost/pristine/busybox:1

# The name of this directory changes whenever the content of the images may change.
images_folder() {
	local sum
	sum=$(cat "$(static_busybox)" "$here/lib/images.sh" | sha256sum)
	echo "$cache/images/${sum:0:16}"
}

build_images() {
	local folder work
	folder=$(images_folder)
	if [[ -f $folder/pause.tar && -f $folder/busybox.tar ]]; then return; fi
	log "building the images $pause_image and $test_image"
	work=$(mktemp -d)
	mkdir -p "$work/root"/{bin,etc,home,proc,sys,dev,root,tmp,var} "$folder"
	cp "$(static_busybox)" "$work/root/bin/busybox"
	# Copied before the links of the applets are created, so that the pause image has none.
	cp -r "$work/root" "$work/pause"
	# Warning: wget of Debian's static busybox crashes with -T; 'timeout 3 wget' works.
	local applet
	while read -r applet; do ln -sf busybox "$work/root/bin/$applet"; done < <("$work/root/bin/busybox" --list | grep -vx busybox)
	chmod 1777 "$work/root/tmp"
	printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'nobody:x:65534:65534:nobody:/:/bin/sh' >"$work/root/etc/passwd"
	printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >"$work/root/etc/group"

	# A shell, because it reaps orphans: with shareProcessNamespace the pause process is every container's init.
	cat >"$work/Containerfile.pause" <<-'END'
		FROM scratch
		COPY pause/bin /bin
		USER 65535:65535
		ENTRYPOINT ["/bin/busybox", "sh", "-c", "trap exit TERM INT; busybox sleep 2147483647 & while :; do wait; done"]
	END
	# The default command exits on TERM. A plain sleep as process 1 would delay every deletion by 30 s.
	cat >"$work/Containerfile.busybox" <<-'END'
		FROM scratch
		COPY root /
		ENV PATH=/bin
		CMD ["sh", "-c", "trap exit TERM INT; sleep 2147483647 & wait"]
	END
	local image reference
	for image in pause busybox; do
		reference=localhost/pristine/$image:1
		# Separate storage, so that these images do not appear among the user's own. vfs and chroot need no overlay mounts and
		# no namespaces, so this works inside containers too.
		if ! {
			buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs bud --isolation chroot --quiet \
				--file "$work/Containerfile.$image" --tag "$reference" "$work" &&
				buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs push --quiet \
					"$reference" "oci-archive:$folder/$image.new:$reference"
		} >"$work/log" 2>&1 </dev/null; then
			tail -n 20 "$work/log" | sed 's/^/       | /' >&2
			rm -rf "$work"
			die "could not build $reference"
		fi
		mv "$folder/$image.new" "$folder/$image.tar"
	done
	rm -rf "$work"
}

ctr_() { ctr --address "$state/containerd/containerd.sock" --namespace k8s.io "$@"; }

has_image() { [[ -n $(ctr_ images ls -q "name==$1") ]]; }

import_images() {
	local folder image
	folder=$(images_folder)
	for image in pause busybox; do
		if has_image "localhost/pristine/$image:1"; then continue; fi
		ctr_ images import "$folder/$image.tar" >/dev/null || die_with_log containerd "could not import $folder/$image.tar"
		has_image "localhost/pristine/$image:1" || die "$folder/$image.tar was imported, but does not contain localhost/pristine/$image:1"
	done
}
